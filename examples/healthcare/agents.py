"""Three agents that talk about patients. Everything here is made up."""

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, DataBlocked


class Complaint(BaseModel):
    patient: str
    text: str


class Invoice(BaseModel):
    patient: str
    text: str


class Triage(Agent[dict[str, object]]):
    """Decides how urgent a complaint is; it never sees how to reach the patient."""

    @Agent.on("assess", model=Complaint)
    async def assess(self, message: AgentMessage, complaint: Complaint) -> None:
        print(f"got: {complaint.text}")
        urgent = "chest" in complaint.text.lower()
        await message.reply("urgency", {"urgent": urgent})


class Billing(Agent[dict[str, object]]):
    """Takes invoices."""

    @Agent.on("invoice", model=Invoice)
    async def invoice(self, message: AgentMessage, invoice: Invoice) -> None:
        print(f"got: {invoice.text}")


class Intake(Agent[dict[str, object]]):
    """Takes patients in: messages as people write them, of which not every one may pass."""

    async def on_start(self) -> None:
        await self.ask("Headache since Monday.")
        await self.ask("Chest pain. ROOM-412, call me at (415) 555-0132 or ada@example.org.")
        await self.bill("Consultation, paid by card 4111 1111 1111 1111.")
        await self.bill("Consultation, patient's SSN 219-09-9999.")
        await self.bill("Consultation, to be paid in cash.")
        self.finish()

    async def ask(self, text: str) -> None:
        reply = await self.request("triage", "assess", Complaint(patient="p-17", text=text))
        print("urgent" if reply.data["urgent"] else "can wait")

    async def bill(self, text: str) -> None:
        try:
            await self.send("billing", "invoice", Invoice(patient="p-17", text=text))
        except DataBlocked as blocked:
            print(f"not sent, blocked by {blocked.verdict.rule}")
        else:
            print("invoice sent")
