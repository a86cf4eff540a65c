"""The help desk: answers questions and counts its answers in durable state."""

import asyncio

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, TlsClientConfig


class Ask(BaseModel):
    question: str


class DeskState(BaseModel):
    answered: int = 0


async def my_llm(question: str) -> str:
    return f"Have you tried turning it off and on again? (You asked: {question})"


class HelpDesk(Agent[DeskState]):
    @Agent.on("ask", model=Ask)
    async def handle_ask(self, message: AgentMessage, payload: Ask) -> None:
        answer = await my_llm(payload.question)  # your logic
        await self.update_state({"answered": self.state.answered + 1})
        await self.send_reply_envelope(message, "answer", {"text": answer})


async def main() -> None:
    tls = TlsClientConfig(
        root_ca_path="certs/ca.pem",
        client_cert_path="certs/helpdesk.pem",
        client_key_path="certs/helpdesk.key",
    )
    desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=tls)
    await desk.start()  # connects over mTLS, restores state, begins handling
    await desk.run_until_stopped()


if __name__ == "__main__":
    asyncio.run(main())
