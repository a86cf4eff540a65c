"""Durable, typed, and never lost to a race; the same through the policy service and directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, IdReused, StateConflict, StateCorrupt, StateInvalid
from mas_nats.wire.state_mode import StateMode
from tests.contract.broker import LIMITS, Broker
from tests.contract.conftest import AGENTS, ALLOW, Stage


class DeskState(BaseModel):
    answered: int = 0
    name: str = ""


class Desk(Agent[DeskState]):
    @Agent.on("ask")
    async def ask(self, message: AgentMessage) -> None:
        await self.update_state({"answered": self.state.answered + 1})
        await message.reply("answer", {"answered": self.state.answered})


class Other(Agent[dict[str, object]]):
    pass


@pytest.fixture(params=StateMode)
async def stage(broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    stage = Stage(await broker.namespace(AGENTS, ALLOW, LIMITS, state=request.param))
    yield stage
    await stage.close()


async def test_restored_on_restart(stage: Stage):
    a, desk = await stage.start(Agent, "a"), await stage.start(Desk, "b")
    for _ in range(3):
        await a.request("b", "ask", {})
    await desk.stop()
    assert desk.state.answered == 3
    again = await stage.start(Desk, "b")
    assert again.state == DeskState(answered=3)


async def test_concurrent_handlers_of_one_instance_count_right(stage: Stage):
    a, desk = await stage.start(Agent, "a"), await stage.start(Desk, "b")
    await asyncio.gather(*(a.request("b", "ask", {}) for _ in range(40)))
    assert (await desk.refresh_state()).answered == 40


async def test_what_does_not_fit_is_refused(stage: Stage):
    desk = await stage.start(Desk, "b")
    for changes in ({"answered": "3"}, {"answerd": 3}, {"name": None}):
        with pytest.raises(StateInvalid):
            await desk.update_state(changes)
    assert await desk.refresh_state() == DeskState()


async def test_a_lost_race_raises(stage: Stage):
    one, two = await stage.start(Desk, "b"), await stage.start(Desk, "b")
    await one.update_state({"answered": 1})
    with pytest.raises(StateConflict):
        await two.update_state({"name": "two"})
    await two.update_state({"name": "two"})
    assert await one.refresh_state() == DeskState(answered=1, name="two")


async def test_an_id_that_stands_for_another_update_is_refused(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
):
    stage = Stage(await broker.namespace(AGENTS, ALLOW, LIMITS))
    desk = await stage.start(Desk, "b")
    monkeypatch.setattr("mas_nats.state_access.new_message_id", lambda: "same")
    await desk.update_state({"answered": 1})
    for _ in range(2):
        with pytest.raises(IdReused):
            await desk.update_state({"answered": 2})
        assert (await desk.refresh_state()).answered == 1
    monkeypatch.setattr("mas_nats.state_access.new_message_id", lambda: "another")
    await desk.update_state({"answered": 2})
    assert (await desk.refresh_state()).answered == 2
    await stage.close()


async def test_without_a_model(stage: Stage):
    other = await stage.start(Other, "b")
    await other.update_state({"anything": {"goes": [1, 2]}})
    await other.stop()
    again = await stage.start(Other, "b")
    assert again.state == {"anything": {"goes": [1, 2]}}


async def test_corrupt_state_is_kept_until_it_is_reset(stage: Stage):
    other = await stage.start(Other, "b")
    await other.update_state({"answered": "many"})
    await other.stop()
    desk = stage.make(Desk, "b")
    for _ in range(2):
        with pytest.raises(StateCorrupt, match="answered"):
            await desk.start()
    assert await desk.reset_state() == DeskState()
    await desk.start()
    await desk.update_state({"answered": 1})


async def test_each_agent_has_its_own(stage: Stage):
    b, c = await stage.start(Desk, "b"), await stage.start(Desk, "c")
    await b.update_state({"answered": 7})
    assert (await c.refresh_state()).answered == 0
    await c.update_state({"answered": 8})
    for agent, answered in ((b, 7), (c, 8)):
        await agent.stop()
        again = await stage.start(Desk, agent.agent_id)
        assert again.state.answered == answered
