"""A customer under `mas run`: finds who can answer, asks, and has finished."""

import asyncio

from mas_nats import Agent, AgentInfo

QUESTIONS = ("My printer is silent.", "Where is my order?", "Can I have a refund?")


class Customer(Agent[dict[str, object]]):
    async def on_start(self) -> None:
        desk = await self.find("qa")
        print(f"asking {desk.agent_id}, team {desk.metadata['team']}")
        for question in QUESTIONS:
            reply = await self.request(desk.agent_id, "ask", {"question": question}, timeout=30)
            print(reply.data["text"])
        self.finish()

    async def find(self, capability: str) -> AgentInfo:
        """Whoever can do it; they may still be starting."""
        while not (found := await self.discover(capabilities=[capability])):  # noqa: ASYNC110 - no event says it
            await asyncio.sleep(0.1)
        return found[0]
