"""Tests of agents as users write them. ``test_sdk_types`` runs mypy in strict mode over this file."""

from __future__ import annotations

from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, Decision, PermissionDenied
from mas_nats.testing import DeadLetter, Limits, MemoryBroker, SeenDecision, SentMessage
from mas_nats.testing.fixtures import MakeBroker
from mas_nats.testing.real import RealBroker


class DeskState(BaseModel):
    answered: int = 0


class HelpDesk(Agent[DeskState]):
    def __init__(self, agent_id: str, *, greeting: str = "hello", **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.greeting = greeting

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("answer", {"text": self.greeting})


async def test_desk() -> None:
    limits = Limits(max_deliver=2, retry_delay=60)
    agents: dict[str, list[str]] = {"desk": ["qa"], "router": []}
    async with MemoryBroker(agents, allow={"router": ["desk"]}, limits=limits) as broker:
        assert_type(broker, MemoryBroker)
        desk = broker.agent(HelpDesk, "desk", capabilities=["qa"], greeting="hi")
        assert_type(desk, HelpDesk)
        router = Agent("router", **broker.options("router"))
        async with desk, router:
            reply = await router.request("desk", "ask", {})
            assert reply.data == {"text": "hi"}
            broker.refuse("send", decision=Decision.RATE_LIMITED)
            with pytest.raises(PermissionDenied):
                await router.send("other", "note", {})
            await broker.advance(60)
            await broker.idle()
        assert_type(broker.sent, list[SentMessage])
        assert_type(broker.dead_letters("desk"), list[DeadLetter])
        assert_type(broker.decisions, list[SeenDecision])
        assert_type(broker.now, float)


async def test_fixtures(memory_broker: MakeBroker[MemoryBroker], real_broker: MakeBroker[RealBroker]) -> None:
    memory = await memory_broker(["desk", "router"], allow={"router": ["*"]})
    real = await real_broker(["desk", "router"], allow={"router": ["*"]})
    assert_type(memory.agent(HelpDesk, "desk"), HelpDesk)
    assert_type(real.agent(HelpDesk, "desk"), HelpDesk)
    real.agent(str, "desk")  # type: ignore[type-var]  # not an agent
