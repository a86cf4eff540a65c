"""A planner splits a goal, workers write at the same time, a critic sends back what is not good yet."""

import asyncio
from collections.abc import AsyncIterator

from pydantic import BaseModel

from mas_nats import Agent, AgentMessage

PARTS = ("programme", "budget", "safety plan")
DRAFTS = 3
PACE = 0.02  # seconds between two words


class Task(BaseModel):
    about: str
    goal: str
    advice: str = ""


class Draft(BaseModel):
    about: str
    text: str


class Opinion(BaseModel):
    good: bool
    advice: str = ""


async def my_llm(task: Task) -> AsyncIterator[str]:
    """Your model; this one knows a single sentence, and takes advice."""
    text = f"The {task.about} of {task.goal} is settled soon"
    text += f", and {task.advice}." if task.advice else "."
    for word in text.split():
        await asyncio.sleep(PACE)
        yield word + " "


class Worker(Agent[dict[str, object]]):
    @Agent.on("write", model=Task)
    async def write(self, message: AgentMessage, task: Task) -> None:
        print(f"writing about the {task.about}" + (f" again: it {task.advice}" if task.advice else ""))
        async with message.reply_stream() as out:
            async for word in my_llm(task):
                await out.write(word)


class Record(BaseModel):
    judged: int = 0
    sent_back: int = 0


class Critic(Agent[Record]):
    @Agent.on("judge", model=Draft)
    async def judge(self, message: AgentMessage, draft: Draft) -> None:
        good = draft.about != "budget" or "reserve" in draft.text
        await self.update_state(
            {"judged": self.state.judged + 1, "sent_back": self.state.sent_back + (not good)}
        )
        print(f"the {draft.about}: {'good' if good else 'not yet'}")
        await message.reply(
            "opinion", Opinion(good=good, advice="" if good else "has a reserve of ten percent")
        )


class Planner(Agent[dict[str, object]]):
    def __init__(self, agent_id: str, goal: str, workers: int = 1, **kwargs: object) -> None:
        super().__init__(agent_id, **kwargs)
        self.goal = goal
        self.workers = workers

    async def on_start(self) -> None:
        while await self.writers() < self.workers:  # noqa: ASYNC110 - no event says that one has started
            await asyncio.sleep(0.1)
        drafts = await asyncio.gather(*(self.settle(about) for about in PARTS))
        print(f"the plan for {self.goal}:")
        for draft in drafts:
            print(f"- {draft.text}")
        self.finish()

    async def writers(self) -> int:
        """How many instances can write at the moment."""
        return sum(found.instances for found in await self.discover(capabilities=["writing"]))

    async def settle(self, about: str) -> Draft:
        """Have one part written until the critic is content."""
        advice = ""
        for _ in range(DRAFTS):
            draft = await self.write(Task(about=about, goal=self.goal, advice=advice))
            reply = await self.request("critic", "judge", draft)
            opinion = Opinion.model_validate(reply.data)
            if opinion.good:
                return draft
            advice = opinion.advice
        raise RuntimeError(f"the {about} is still not good after {DRAFTS} drafts")

    async def write(self, task: Task) -> Draft:
        """Read a worker's reply while it is made."""
        text = ""
        async for chunk in self.stream("worker", "write", task):
            if not text:
                print(f"the {task.about} begins with {str(chunk)!r}")
            text += str(chunk)
        return Draft(about=task.about, text=text.strip())
