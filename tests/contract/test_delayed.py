"""Messages that are delivered later, taken back, or refused when they are due."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from mas_nats import IdReused, InvalidMessage, Overloaded, PermissionDenied
from tests.contract.broker import LIMITS, Broker
from tests.contract.conftest import AGENTS, ALLOW, Recorder, Stage, eventually, now


async def test_a_delayed_message_arrives_when_it_is_due(stage: Stage):
    a, b = await stage.recorders("a", "b")
    before = now()
    message_id = await a.send("b", "note", {"n": 1}, delay=0.6)
    assert now() - before < 0.6
    await a.send("b", "note", {"n": 0})
    await eventually(lambda: len(b.got) == 2)
    assert now() - before > 0.599  # binary fractions
    assert [message.data["n"] for message in b.got] == [0, 1]
    got = b.got[1]
    assert (got.message_id, got.sender, got.target, got.message_type) == (message_id, "a", "b", "note")
    assert (got.attempt, got.expects_reply) == (1, False)
    assert b.got[1].sent_at <= b.got[0].sent_at
    await stage.all_acknowledged("b")


async def test_times_of_every_form(stage: Stage):
    a, b = await stage.recorders("a", "b")
    await a.send("b", "note", {"n": 0})
    await eventually(lambda: b.got)
    clock = b.got[0].sent_at
    await a.send("b", "note", {"n": 3}, at=clock + timedelta(seconds=1.2))
    await a.send("b", "note", {"n": 2}, delay=timedelta(milliseconds=500))
    await a.send("b", "note", {"n": 1}, at=clock - timedelta(days=1))
    await eventually(lambda: len(b.got) == 4)
    assert [message.data["n"] for message in b.got] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "options",
    [
        {"at": datetime(2030, 1, 1)},  # noqa: DTZ001 - refused for it
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": "10m"},
        {"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"delay": LIMITS.max_delay + 60},
    ],
)
async def test_a_time_that_is_none_is_refused(stage: Stage, options: dict[str, object]):
    (a,) = await stage.recorders("a")
    with pytest.raises(InvalidMessage):
        await a.send("b", "note", {}, **options)  # type: ignore[arg-type]


async def test_a_cancelled_message_does_not_arrive(stage: Stage):
    a, b = await stage.recorders("a", "b")
    message_id = await a.send("b", "note", {"n": 1}, delay=0.7)
    other = await a.send("b", "note", {"n": 2}, delay=0.7)
    assert await a.cancel(message_id)
    assert await a.cancel(message_id), "a repetition is told the same"
    await eventually(lambda: b.got)
    await a.send("b", "note", {"n": 3})
    await eventually(lambda: len(b.got) == 2)
    assert [message.data["n"] for message in b.got] == [2, 3]
    assert not await a.cancel(other), "it was released"
    assert not await a.cancel("never-heard-of")


async def test_an_id_can_be_used_again_after_it_was_cancelled(stage: Stage):
    a, b = await stage.recorders("a", "b")
    await a.send("b", "note", {"n": 1}, id="x", delay=60)
    assert await a.cancel("x")
    await a.send("b", "note", {"n": 2}, id="x", delay=0.2)
    await eventually(lambda: b.got)
    assert [message.data["n"] for message in b.got] == [2]
    assert not await a.cancel("x")


async def test_what_was_released_cannot_be_cancelled_by_way_of_its_repetition(stage: Stage):
    a, b = await stage.recorders("a", "b")
    await a.send("b", "note", {"n": 1}, id="x", delay=0.1)
    await eventually(lambda: b.got)
    await stage.all_acknowledged("b")
    assert await a.send("b", "note", {"n": 1}, id="x", delay=60) == "x", "its answer may have been lost"
    assert not await a.cancel("x")
    with pytest.raises(IdReused):
        await a.send("b", "note", {"n": 2}, id="x", delay=60)
    assert not await a.cancel("x")
    await a.send("b", "note", {"n": 3}, delay=0.2)
    await eventually(lambda: len(b.got) == 2)
    assert [message.data["n"] for message in b.got] == [1, 3]


async def test_nobody_cancels_what_another_sent(stage: Stage):
    a, b, c = await stage.recorders("a", "b", "c")
    message_id = await a.send("b", "note", {"n": 1}, delay=0.6)
    assert not await c.cancel(message_id)
    await c.send("b", "note", {"n": 2}, id=message_id, delay=60)
    assert await c.cancel(message_id)
    await eventually(lambda: b.got)
    assert b.got[0].sender == "a"


async def test_the_same_id_twice_is_held_once(stage: Stage):
    a, b = await stage.recorders("a", "b")
    for _ in range(2):
        assert await a.send("b", "note", {"n": 1}, id="x", delay=0.6) == "x"
    with pytest.raises(IdReused):
        await a.send("b", "note", {"n": 2}, id="x", delay=0.6)
    with pytest.raises(IdReused):
        await a.send("c", "note", {"n": 1}, id="x", delay=0.6)
    await eventually(lambda: b.got)
    assert await a.send("b", "note", {"n": 1}, id="x", delay=0) == "x"  # released already: known there too
    await a.send("b", "note", {"n": 3}, delay=0.2)
    await eventually(lambda: len(b.got) == 2)
    assert [message.data["n"] for message in b.got] == [1, 3]


@pytest.mark.parametrize("message_id", ["a.b.c", "*", ">", "mas.inbox.b", "x" * 128, "~!@#$%^&()"])
async def test_any_id_can_be_delayed_and_cancelled(stage: Stage, message_id: str):
    a, b = await stage.recorders("a", "b")
    await a.send("b", "note", {}, id="bystander", delay=0.5)
    await a.send("b", "note", {}, id=message_id, delay=0.3)
    assert await a.cancel(message_id)
    await eventually(lambda: b.got)
    assert [message.message_id for message in b.got] == ["bystander"]


async def test_checks_are_made_at_once(stage: Stage):
    a, d = await stage.recorders("a", "d")
    with pytest.raises(PermissionDenied):
        await a.send("d", "note", {}, delay=60)
    with pytest.raises(PermissionDenied):
        await d.send("a", "note", {}, delay=60)


async def test_what_is_refused_when_due_is_dead_with_its_reason(stage: Stage):
    a, b, c = await stage.recorders("a", "b", "c")
    await a.send("b", "note", {"n": 1}, delay=1.5)
    await a.send("c", "note", {"n": 2}, delay=1.6)
    await stage.namespace.permit("a", ["c"])
    await eventually(lambda: c.got)
    async with asyncio.timeout(8):
        while (dead := await stage.namespace.dead_letter("b")) is None:
            await asyncio.sleep(0.05)
    assert (dead.reason, dead.body) == ("AUTHZ_DENIED", b'{"n":1}')
    assert "deny_by_default" in dead.error
    assert not b.got


async def refused_at_last(agent: Recorder, target: str) -> None:
    """Send until it is too many: a moment may pass until all workers have counted."""
    async with asyncio.timeout(5):
        while True:
            try:
                await agent.send(target, "note", {}, delay=60)
            except Overloaded:
                return


async def test_too_many_of_one_sender(broker: Broker):
    limits = LIMITS.model_copy(update={"delayed_messages": 3})
    stage = Stage(await broker.namespace(AGENTS, ALLOW, limits))
    try:
        a, b = await stage.recorders("a", "b")
        for n in range(3):
            await a.send("c", "note", {"n": n}, id=f"m{n}", delay=60)
        await refused_at_last(a, "c")
        assert await a.send("c", "note", {"n": 0}, id="m0", delay=60) == "m0", "it is held already"
        await b.send("c", "note", {}, delay=60)
    finally:
        await stage.close()
