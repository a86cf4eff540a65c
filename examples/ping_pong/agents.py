"""Ping serves, pong returns. Each message is on disk and in the audit before it is on its way."""

import time

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage


class Ball(BaseModel):
    number: int


class Ping(Agent[dict[str, object]]):
    def __init__(self, agent_id: str, rounds: int = 10, **kwargs: object) -> None:
        super().__init__(agent_id, **kwargs)
        self.rounds = rounds
        self.served_at = 0.0

    async def on_start(self) -> None:
        await self.serve(1)

    async def serve(self, number: int) -> None:
        self.served_at = time.monotonic()
        await self.send("pong", "ball", Ball(number=number))

    @Agent.on("ball", model=Ball)
    async def ball(self, message: AgentMessage, payload: Ball) -> None:
        took = (time.monotonic() - self.served_at) * 1000
        print(f"ball {payload.number} came back after {took:.1f} ms")
        if payload.number < self.rounds:
            await self.serve(payload.number + 1)
        else:
            print(f"{self.rounds} rounds played")
            self.finish()  # this agent has done its work


class Pong(Agent[dict[str, object]]):
    @Agent.on("ball", model=Ball)
    async def ball(self, message: AgentMessage, payload: Ball) -> None:
        await self.send(message.sender, "ball", payload)
