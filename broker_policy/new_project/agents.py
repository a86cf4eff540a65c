"""Two agents: one greets and counts whom it has greeted, the other comes by every few seconds."""

import asyncio

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, MasError


class Greet(BaseModel):
    """What a visitor says."""

    name: str


class Guests(BaseModel):
    """What the greeter remembers, also after a restart."""

    greeted: int = 0


class Greeter(Agent[Guests]):
    """Answers ``greet``. What the manifest has under ``init_kwargs`` comes to the constructor."""

    def __init__(self, agent_id: str, greeting: str = "Hello", **kwargs: object) -> None:
        super().__init__(agent_id, **kwargs)
        self.greeting = greeting

    @Agent.on("greet", model=Greet)
    async def greet(self, message: AgentMessage, payload: Greet) -> None:
        """Count the visitor, then answer."""
        await self.update_state({"greeted": self.state.greeted + 1})
        text = f"{self.greeting}, {payload.name}! You are number {self.state.greeted}."
        await message.reply("greeting", {"text": text})


class Visitor(Agent[dict[str, object]]):
    """Asks for a greeting every five seconds."""

    async def on_start(self) -> None:
        """Begin, and let the start go on."""
        self.visiting = asyncio.create_task(self.visit())

    async def on_stop(self) -> None:
        """End it before the connection is closed."""
        self.visiting.cancel()

    async def visit(self) -> None:
        """Ask, print the answer, wait."""
        while True:
            try:
                reply = await self.request("greeter", "greet", {"name": "visitor"}, timeout=10)
                print(reply.data["text"])
            except MasError as error:
                print(f"no greeting: {error}")
            await asyncio.sleep(5)
