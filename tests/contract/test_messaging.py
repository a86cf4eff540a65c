"""Sending, requesting, replying, discovering."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from pydantic import BaseModel

from mas_nats import (
    Agent,
    AgentMessage,
    ForeignReply,
    IdReused,
    InvalidMessage,
    Overloaded,
    PermissionDenied,
    RequestFailed,
    RequestTimeout,
    StateInvalid,
    UnknownTarget,
)
from tests.contract.broker import LIMITS, Broker
from tests.contract.conftest import AGENTS, ALLOW, Recorder, Stage, eventually, now


class Ask(BaseModel):
    question: str


class Desk(Agent[Any]):
    @Agent.on("ask", model=Ask)
    async def ask(self, message: AgentMessage, payload: Ask) -> None:
        await message.reply("answer", {"text": payload.question.upper(), "by": self.instance})

    @Agent.on("relay", model=Ask)
    async def relay(self, message: AgentMessage, payload: Ask) -> None:
        answer = await self.request("c", "ask", payload, timeout=10)
        await self.send_reply_envelope(message, "answer", answer.data)


async def test_send_arrives_as_it_was_sent(stage: Stage):
    a, b = await stage.recorders("a", "b")
    data = {"text": "grüß dich", "n": 3, "list": [1, 2.5, None, True], "deep": {"x": {}}}
    message_id = await a.send("b", "note", data)
    await eventually(lambda: b.got)
    got = b.got[0]
    assert (got.message_id, got.sender, got.target, got.message_type) == (message_id, "a", "b", "note")
    assert (got.data, got.attempt, got.deadline, got.expects_reply) == (data, 1, None, False)
    assert abs(got.sent_at.timestamp() - time.time()) < 5


async def test_send_to_an_agent_that_is_not_running_waits_for_it(stage: Stage):
    (a,) = await stage.recorders("a")
    for n in range(3):
        await a.send("b", "note", {"n": n})
    (b,) = await stage.recorders("b")
    await eventually(lambda: len(b.got) == 3)
    assert [message.data["n"] for message in b.got] == [0, 1, 2]


async def test_same_id_is_stored_once(stage: Stage):
    a, b = await stage.recorders("a", "b")
    assert await a.send("b", "note", {"n": 1}, id="order-1") == "order-1"
    assert await a.send("b", "note", {"n": 1}, id="order-1") == "order-1"
    await a.send("b", "note", {"n": 2})
    await eventually(lambda: len(b.got) == 2)
    assert [message.data["n"] for message in b.got] == [1, 2]


async def test_request_and_reply(stage: Stage):
    a, desk = await stage.start(Agent, "a"), await stage.start(Desk, "b")
    reply = await a.request("b", "ask", Ask(question="why"), timeout=10)
    assert (reply.sender, reply.target, reply.message_type) == ("b", "a", "answer")
    assert reply.data == {"text": "WHY", "by": desk.instance}


async def test_reply_reaches_the_instance_that_asked(stage: Stage):
    first, second = await stage.start(Agent, "a"), await stage.start(Agent, "a")
    await stage.start(Desk, "b")
    assert first.instance != second.instance
    answers = await asyncio.gather(
        *(agent.request("b", "ask", {"question": f"q{n}"}) for n in range(20) for agent in (first, second))
    )
    assert [answer.data["text"] for answer in answers] == [f"Q{n}" for n in range(20) for _ in range(2)]


async def test_work_is_shared_by_instances(stage: Stage):
    (a,) = await stage.recorders("a")
    desks = [await stage.start(Desk, "b") for _ in range(3)]
    answers = await asyncio.gather(*(a.request("b", "ask", {"question": "q"}) for _ in range(60)))
    by = {answer.data["by"] for answer in answers}
    assert len(by) > 1
    assert by <= {desk.instance for desk in desks}


async def test_idle_instances_take_turns(stage: Stage):
    (a,) = await stage.recorders("a")
    instances = await stage.recorders("b", "b", "b")

    async def work(message: AgentMessage) -> None:
        await asyncio.Event().wait()

    for each in instances:
        each.work = work
    for n in range(6):
        await a.send("b", "note", {"n": n})
    await eventually(lambda: sum(each.running for each in instances) == 6)
    assert all(each.running for each in instances)


async def test_nested_requests_do_not_deadlock(stage: Stage):
    a, _, _ = await asyncio.gather(stage.start(Agent, "a"), stage.start(Desk, "b"), stage.start(Desk, "c"))
    many = 10 * LIMITS.in_flight
    answers = await asyncio.gather(*(a.request("b", "relay", {"question": str(n)}) for n in range(many)))
    assert [answer.data["text"] for answer in answers] == [str(n) for n in range(many)]


async def test_request_nobody_answers(stage: Stage):
    a, _ = await stage.recorders("a", "b")
    before = now()
    with pytest.raises(RequestTimeout, match=r"b did not answer 'note' within 0\.5 s") as caught:
        await a.request("b", "note", {}, timeout=0.5)
    assert isinstance(caught.value, TimeoutError)
    assert now() - before < 2


async def test_request_that_is_given_up_fails_at_once(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Desk, "b")
    before = now()
    with pytest.raises(RequestFailed, match="NotHandled"):
        await a.request("b", "ask", {"wrong": "x"}, timeout=20)
    assert now() - before < 5


async def test_repeated_and_late_replies_hurt_nobody(stage: Stage):
    a, b = await stage.recorders("a", "b")
    results: list[Any] = []

    async def work(message: AgentMessage) -> None:
        results.append(await message.reply("answer", {"n": 1}))
        results.append(await message.reply("answer", {"n": 2}))

    b.work = work
    assert (await a.request("b", "note", {})).data == {"n": 1}
    await eventually(lambda: len(results) == 2)
    assert [(each.delivered, each.duplicate) for each in results] == [(True, False), (True, True)]
    await stage.all_acknowledged("b")


async def test_refused_before_anything_happens(stage: Stage):
    a, d = await asyncio.gather(stage.start(Agent, "a"), stage.start(Agent, "d"))
    with pytest.raises(PermissionDenied, match="no rule allows d to send to a") as caught:
        await d.send("a", "note", {})
    assert caught.value.verdict.fix
    for target in ("*", ">", "b.c", "b c", "B", ""):
        with pytest.raises(InvalidMessage, match="is not a valid id"):
            await a.send(target, "note", {})
    with pytest.raises(PermissionDenied, match="no rule allows a to send to elsewhere/b"):
        await a.send("elsewhere/b", "note", {})
    with pytest.raises(InvalidMessage, match="bytes, the limit is"):
        await a.send("b", "note", {"x": "y" * (LIMITS.max_payload + 1)})


async def test_discover_shows_who_is_alive_and_reachable(stage: Stage):
    a, _, _, d = await asyncio.gather(*(stage.start(Agent, each) for each in "abcd"))
    assert [each.agent_id for each in await a.discover(capabilities=["qa"])] == ["b", "c"]
    assert [each.agent_id for each in await a.discover(capabilities=["qa", "math"])] == ["b"]
    assert [each.agent_id for each in await a.discover()] == ["b", "c"]
    assert await a.discover(capabilities=["hidden"]) == []
    assert await d.discover() == []


async def test_a_stopped_agent_is_not_discovered(stage: Stage):
    a, b = await asyncio.gather(stage.start(Agent, "a"), stage.start(Agent, "b"))
    await stage.start(Agent, "b")
    (found,) = await a.discover(["qa"])
    assert (found.agent_id, found.instances) == ("b", 2)
    await b.stop()
    async with asyncio.timeout(5):
        while (await a.discover(["qa"]))[0].instances != 1:
            await asyncio.sleep(0.05)


async def test_a_known_id_with_other_content_is_refused(stage: Stage):
    a, b = await stage.recorders("a", "b")
    await a.send("b", "note", {"n": 1}, id="order-1")
    await eventually(lambda: b.got)
    for target, kind, data in (("b", "note", {"n": 2}), ("b", "other", {"n": 1}), ("c", "note", {"n": 1})):
        with pytest.raises(IdReused):
            await a.send(target, kind, data, id="order-1")
    (c,) = await stage.recorders("c")
    await c.send("b", "note", {"n": 3}, id="order-1")  # an id is its sender's own
    await eventually(lambda: len(b.got) == 2)
    assert [message.data["n"] for message in b.got] == [1, 3]


async def test_an_allowed_target_that_does_not_exist(stage: Stage):
    (a,) = await stage.recorders("a")
    with pytest.raises(UnknownTarget, match="there is no agent 'ghost'"):
        await a.send("ghost", "note", {})


async def test_an_inbox_that_nobody_reads_leaves_half_of_the_log(broker: Broker):
    limits = LIMITS.model_copy(update={"log_bytes": 1 << 20})
    stage = Stage(await broker.namespace(AGENTS, ALLOW, limits))
    a, c = await stage.recorders("a", "c")
    large = {"text": "x" * 50_000}

    async def fill() -> None:
        for _ in range(20):
            await a.send("b", "note", large)
            await asyncio.sleep(0.06)  # the room is looked at four times a second

    with pytest.raises(Overloaded, match="the inbox of b holds more than is left in the log for all others"):
        await fill()
    await a.send("c", "note", large)
    await eventually(lambda: len(c.got) == 1)
    await stage.recorders("b")
    await stage.all_acknowledged("b")
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(Overloaded):
                await a.send("b", "note", large)
                break
            await asyncio.sleep(0.05)
    await stage.close()


async def test_what_the_server_does_not_carry_is_refused_at_once(broker: Broker):
    """Though the namespace's own limits are larger."""
    limits = LIMITS.model_copy(update={"max_payload": 50_000_000, "max_state": 50_000_000})
    stage = Stage(await broker.namespace(AGENTS, ALLOW, limits))
    a, b = await stage.recorders("a", "b")
    for size in (2_090_000, 3_000_000):
        large = {"text": "x" * size}
        begun = now()
        with pytest.raises(InvalidMessage, match=r"TOO_LARGE.*the limit is 2088960"):
            await a.send("b", "note", large)
        with pytest.raises(InvalidMessage, match="TOO_LARGE"):
            await a.request("b", "note", large)
        with pytest.raises(StateInvalid, match="the limit is 2088960"):
            await a.update_state(large)
        assert now() - begun < 5
    await a.send("b", "note", {"text": "x" * 2_080_000})
    await eventually(lambda: b.got)
    boastful = stage.make(Recorder, "c", metadata={"text": "x" * 3_000_000})
    begun = now()
    with pytest.raises(InvalidMessage):
        await boastful.start()
    assert now() - begun < 5
    await stage.close()


async def test_a_full_inbox_refuses_and_takes_again(broker: Broker):
    stage = Stage(await broker.namespace(AGENTS, ALLOW, LIMITS.model_copy(update={"inbox_messages": 3})))
    (a,) = await stage.recorders("a")
    for n in range(3):
        await a.send("b", "note", {"n": n})
    with pytest.raises(Overloaded, match="the inbox of b is full"):
        await a.send("b", "note", {"n": 3})
    await a.send("c", "note", {})  # others are not concerned
    (b,) = await stage.recorders("b")
    await stage.all_acknowledged("b")
    async with asyncio.timeout(5):
        while True:
            try:
                await a.send("b", "note", {"n": 4})
                break
            except Overloaded:
                await asyncio.sleep(0.1)
    await eventually(lambda: [message.data["n"] for message in b.got] == [0, 1, 2, 4])
    await stage.close()


async def test_only_the_agent_that_was_asked_may_answer(stage: Stage):
    a, b, c = await stage.recorders("a", "b", "c")

    async def work(message: AgentMessage) -> None:
        with pytest.raises(ForeignReply):
            await c.send_reply_envelope(message, "answer", {"by": "c"})
        await message.reply("answer", {"by": "b"})

    b.work = work
    reply = await a.request("b", "ask", {})
    assert (reply.sender, reply.data) == ("b", {"by": "b"})


async def test_a_late_reply_is_told_and_goes_nowhere(stage: Stage):
    """Clocks may disagree by five seconds, so late is five seconds after the deadline."""
    a, b = await stage.recorders("a", "b")
    results: list[Any] = []

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(6)
        results.append(await message.reply("answer", {}))

    b.work = work
    with pytest.raises(RequestTimeout):
        await a.request("b", "note", {}, timeout=0.3)
    await eventually(lambda: results, timeout=15)
    assert (results[0].delivered, results[0].late) == (False, True)
    await stage.all_acknowledged("b")


async def test_a_capability_counts_when_it_is_declared_and_announced(stage: Stage):
    a = await stage.start(Agent, "a")
    boasting = Agent("b", capabilities=["qa", "flying"], **stage.namespace.options("b"))
    async with boasting:
        assert [each.capabilities for each in await a.discover()] == [("qa",)]
        assert await a.discover(["flying"]) == []
        assert await a.discover(["math"]) == []


async def test_an_instance_that_only_sends_is_not_found_and_takes_nothing(stage: Stage):
    a, b = await stage.start(Agent, "a"), await stage.start(Agent, "b", receive=False)
    assert await a.discover() == []
    await a.send("b", "note", {})
    assert [each.agent_id for each in await b.discover()] == ["a"]
    assert await stage.namespace.waiting("b") == 1
