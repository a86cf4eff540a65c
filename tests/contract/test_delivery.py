"""At least once, or in the dead letters with a reason; never twice at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from mas_nats import Agent, AgentMessage, Reject, RequestFailed, RequestTimeout
from mas_nats.wire import headers
from mas_nats.wire.subjects import Op
from tests.contract.broker import LIMITS, Broker
from tests.contract.conftest import AGENTS, ALLOW, Recorder, Stage, eventually, now

CARD = "4111 1111 1111 1112"  # no card: its check digit is wrong, so that it is delivered


class Ask(BaseModel):
    question: str


class Picky(Recorder):
    @Agent.on("ask", model=Ask)
    async def ask(self, message: AgentMessage, payload: Ask) -> None:
        self.got.append(message)


async def test_a_failed_handler_is_tried_again_later(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        if message.attempt < 3:
            raise ValueError("not yet")

    b.work = work
    before = now()
    await a.send("b", "note", {})
    await eventually(lambda: len(b.got) == 3)
    assert now() - before > 0.75 * (0.1 + 0.2)
    assert [message.attempt for message in b.got] == [1, 2, 3]
    assert len({message.message_id for message in b.got}) == 1
    await stage.all_acknowledged("b")


async def test_an_exhausted_message_is_dead_with_its_last_error_and_body(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        raise ValueError(f"refused card {CARD}")

    b.work = work
    await a.send("b", "note", {"card": CARD})
    await eventually(lambda: len(b.got) == LIMITS.max_deliver)
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.attempts, dead.body) == (LIMITS.max_deliver, b'{"card":"4111 1111 1111 1112"}')
    assert "ValueError" in dead.error
    assert "4111" not in dead.error


async def test_reject_is_dead_at_once(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        raise Reject("wrong department")

    b.work = work
    await a.send("b", "note", {})
    await eventually(lambda: b.got)
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert "wrong department" in dead.error
    assert len(b.got) == 1


@pytest.mark.parametrize(("kind", "data"), [("ask", {"question": 7}), ("ask", {}), ("unknown", {})])
async def test_what_no_handler_can_take_is_dead_at_once(stage: Stage, kind: str, data: dict[str, object]):
    class Strict(Agent[dict[str, object]]):
        @Agent.on("ask", model=Ask)
        async def ask(self, message: AgentMessage, payload: Ask) -> None:
            raise AssertionError("it must not run")

    a, _ = await stage.start(Agent, "a"), await stage.start(Strict, "b")
    await a.send("b", kind, data)
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert "NotHandled" in dead.error


async def test_what_is_nested_too_deeply_for_a_model_is_dead_at_once_and_opens_no_circuit(stage: Stage):
    """Whoever sends such things must not keep others from its target."""

    class Tree(BaseModel):
        x: Any = None

    class Forester(Recorder):
        @Agent.on("tree", model=Tree)
        async def tree(self, message: AgentMessage, payload: Tree) -> None:
            self.got.append(message)

    (a,) = await stage.recorders("a")
    b = await stage.start(Forester, "b")
    (c,) = await stage.recorders("c")
    calls: Any = a._alive().calls
    for n in range(8):
        fields = {headers.MSG_ID: f"deep{n}", headers.TYPE: "tree", headers.TARGET: "b"}
        body = b'{"x":' + b"[" * 300 + b"]" * 300 + b"}"
        assert (await calls.call(Op.SEND, body, fields)).ok
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts) == ("NotHandled", 1)
    await c.send("b", "tree", {"x": 2})
    await eventually(lambda: b.got)
    assert [message.sender for message in b.got] == ["c"]


async def test_what_is_read_as_deep_as_can_be_fails_like_anything_else(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        if message.attempt == 1:
            raise ValueError("not yet")

    b.work = work
    calls: Any = a._alive().calls
    fields = {headers.MSG_ID: "deep", headers.TYPE: "note", headers.TARGET: "b"}
    assert (await calls.call(Op.SEND, b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}", fields)).ok
    await eventually(lambda: len(b.got) == 2)
    await stage.all_acknowledged("b")


async def test_a_delivery_says_when_its_message_was_stored(stage: Stage):
    """The same each time: with its sequence it tells a message from any other one."""
    a, b = await stage.recorders("a", "b")
    inbox: Any = b._inbox
    seen: list[tuple[int, int]] = []

    async def work(message: AgentMessage) -> None:
        (delivery,) = inbox._running.values()
        seen.append((delivery.sequence, int(delivery.stored)))
        if message.attempt == 1:
            raise ValueError("not yet")

    b.work = work
    await a.send("b", "note", {})
    await stage.all_acknowledged("b")
    assert len(seen) == 2
    assert len(set(seen)) == 1
    assert abs(seen[0][1] / 1e9 - b.got[0].sent_at.timestamp()) < 5


async def test_a_dead_request_tells_the_requester(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        raise Reject("closed")

    b.work = work
    with pytest.raises(RequestFailed):
        await a.request("b", "note", {}, timeout=20)


async def test_in_flight_is_bounded(stage: Stage):
    a, b = await stage.recorders("a", "b")
    release = asyncio.Event()

    async def work(message: AgentMessage) -> None:
        await release.wait()

    b.work = work
    many = 4 * LIMITS.in_flight
    await asyncio.gather(*(a.send("b", "note", {"n": n}) for n in range(many)))
    await eventually(lambda: b.running == LIMITS.in_flight)
    release.set()
    await eventually(lambda: len(b.got) == many)
    assert b.peak == LIMITS.in_flight
    assert sorted(message.data["n"] for message in b.got) == list(range(many))


@pytest.mark.only("nats", reason="in memory the broker stands still with the loop: there is nothing to see")
async def test_a_handler_that_blocks_the_loop_is_not_started_twice(stage: Stage):
    (a,) = await stage.recorders("a")
    await a.send("b", "note", {})
    await a.stop()

    async def work(message: AgentMessage) -> None:
        time.sleep(2.5 * LIMITS.ack_wait)  # noqa: ASYNC251 - the whole loop stands still

    b = stage.make(Recorder, "b")
    b.work = work
    await b.start()
    await eventually(lambda: b.got)
    await stage.all_acknowledged("b")
    assert [message.attempt for message in b.got] == [1]


async def test_a_long_handler_is_not_given_to_another_instance(stage: Stage):
    a, b, other = await stage.recorders("a", "b", "b")

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(2.2 * LIMITS.ack_wait)

    b.work = other.work = work
    await a.send("b", "note", {})
    await eventually(lambda: b.got or other.got)
    await stage.all_acknowledged("b")
    assert [message.attempt for message in b.got + other.got] == [1]


async def test_stop_finishes_what_runs_and_gives_back_the_rest(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(0.2)

    b.work = work
    many = 4 * LIMITS.in_flight
    await asyncio.gather(*(a.send("b", "note", {"n": n}) for n in range(many)))
    await eventually(lambda: b.running)
    await b.stop()
    assert b.running == 0
    before = now()
    (other,) = await stage.recorders("b")
    await eventually(lambda: len(b.got) + len(other.got) >= many)
    assert now() - before < LIMITS.ack_wait
    assert set(Counter(m.data["n"] for m in b.got + other.got).values()) == {1}


async def test_what_a_dead_process_held_comes_back_to_another(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        await asyncio.Event().wait()

    b.work = work
    await a.send("b", "note", {})
    await eventually(lambda: b.running)
    await b.stop(timeout=0)
    (other,) = await stage.recorders("b")
    await eventually(lambda: other.got)
    assert other.got[0].attempt == 2


async def test_an_expired_request_is_not_handled(stage: Stage):
    (a,) = await stage.recorders("a")
    with pytest.raises(RequestTimeout):
        await a.request("b", "note", {}, timeout=0.3)
    (b,) = await stage.recorders("b")
    await a.send("b", "note", {"n": 1})
    await eventually(lambda: b.got)
    await stage.all_acknowledged("b")
    assert [message.data for message in b.got] == [{"n": 1}]
    assert await stage.namespace.dead_letter("b") is None


async def test_a_message_whose_instances_die_one_after_another_is_dead_in_the_end(stage: Stage):
    """None of them says why, so the dead letter says that."""
    (a,) = await stage.recorders("a")

    async def work(message: AgentMessage) -> None:
        await asyncio.Event().wait()

    await a.send("b", "note", {})
    for _ in range(LIMITS.max_deliver):
        (b,) = await stage.recorders("b")
        b.work = work
        await eventually(lambda b=b: b.running)  # type: ignore[misc]
        await b.stop(timeout=0)
    (last,) = await stage.recorders("b")
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts) == ("EXHAUSTED", LIMITS.max_deliver)
    assert "no report" in dead.error
    assert not last.got


async def test_all_instances_together_handle_no_more_than_the_limit(broker: Broker):
    limits = LIMITS.model_copy(update={"max_ack_pending": 4})
    stage = Stage(await broker.namespace(AGENTS, ALLOW, limits))
    a, b, other = await stage.recorders("a", "b", "b")
    release = asyncio.Event()
    peak = 0

    async def work(message: AgentMessage) -> None:
        nonlocal peak
        peak = max(peak, b.running + other.running)
        await release.wait()

    b.work = other.work = work
    await asyncio.gather(*(a.send("b", "note", {"n": n}) for n in range(16)))
    await eventually(lambda: b.running + other.running == 4)
    release.set()
    await eventually(lambda: len(b.got) + len(other.got) == 16)
    assert peak == 4
    await stage.close()


async def test_dead_letters_say_why_how_often_and_what(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        if message.attempt < 2:
            raise ValueError("not yet")
        raise Reject("closed for ever")

    b.work = work
    await a.send("b", "note", {"n": 1})
    await eventually(lambda: len(b.got) == 2)
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts, dead.body) == ("Reject", 2, b'{"n":1}')
    assert dead.error == "Reject: closed for ever"


async def test_a_message_acknowledged_early_is_not_tried_again(stage: Stage):
    """And its control: the same failure without the early acknowledgement is tried again."""
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        if message.message_type == "once":
            await message.acknowledge()
            assert not await stage.namespace.waiting("b")  # confirmed: the broker has it no more
            await message.acknowledge()  # again is nothing new
        raise ValueError("it went wrong after that")

    b.work = work
    await a.send("b", "once", {})
    await eventually(lambda: len(b.got) == 1 and not b.running)
    await a.send("b", "again", {})
    await eventually(lambda: len(b.got) == 1 + LIMITS.max_deliver)
    await stage.all_acknowledged("b")
    assert [message.message_type for message in b.got] == ["once", *["again"] * LIMITS.max_deliver]


async def test_a_request_acknowledged_early_is_answered(stage: Stage):
    a, b = await stage.recorders("a", "b")

    async def work(message: AgentMessage) -> None:
        await message.acknowledge()
        await message.reply("answer", {"n": 1})

    b.work = work
    reply = await a.request("b", "ask", {})
    assert reply.data == {"n": 1}
    await stage.all_acknowledged("b")
