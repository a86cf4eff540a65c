"""The demo's help desk: counts what it answered, and forgets nothing when it is restarted."""

import asyncio

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage


class Ask(BaseModel):
    question: str


class Note(BaseModel):
    text: str


class DeskState(BaseModel):
    answered: int = 0
    notes: int = 0


class HelpDesk(Agent[DeskState]):
    async def on_start(self) -> None:
        print(f"started; state: answered={self.state.answered} notes={self.state.notes}", flush=True)

    @Agent.on("ask", model=Ask)
    async def ask(self, message: AgentMessage, payload: Ask) -> None:
        await self.update_state({"answered": self.state.answered + 1})
        await message.reply("answer", {"text": f"answer {self.state.answered} to {payload.question!r}"})

    @Agent.on("note", model=Note)
    async def note(self, message: AgentMessage, payload: Note) -> None:
        await self.update_state({"notes": self.state.notes + 1})
        print(f"noted {payload.text!r} from {message.sender}", flush=True)


async def main() -> None:
    desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState)
    await desk.start()
    await desk.run_until_stopped()


if __name__ == "__main__":
    asyncio.run(main())
