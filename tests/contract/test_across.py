"""Messages between two namespaces: each side has to allow what goes between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from mas_nats import (
    Agent,
    AgentMessage,
    ForeignReply,
    IdReused,
    PermissionDenied,
    Reject,
    RequestFailed,
)
from tests.contract.broker import LIMITS, Broker, Namespace
from tests.contract.conftest import Recorder
from tests.system import new_namespace


@dataclass
class Two:
    """``a`` of the first may reach ``b`` of the second, ``d`` of the first accepts nothing from there."""

    first: Namespace
    second: Namespace
    here: str
    there: str
    a: Recorder
    b: Recorder
    namesake: Recorder  # b of the first


async def answer(message: AgentMessage) -> None:
    if message.reply_token:
        await message.reply("answer", {"heard": message.data})


@pytest.fixture
async def two(broker: Broker) -> AsyncIterator[Two]:
    here, there = new_namespace(), new_namespace()
    targets = ("b", f"{there}/b", f"{there}/c", f"{there}/ghost", "nowhere/b")
    first = await broker.namespace({"a": (), "b": ()}, {"a": targets}, LIMITS, name=here)
    second = await broker.namespace({"b": (), "c": ()}, {f"{here}/a": ("b",)}, LIMITS, name=there)
    agents = [Recorder("a", **first.options("a")), Recorder("b", **second.options("b"))]
    agents.append(Recorder("b", **first.options("b")))
    for agent in agents:
        agent.work = answer
        await agent.start()
    yield Two(first, second, here, there, *agents)
    for agent in agents:
        await agent.stop(timeout=1)
    first.close()
    second.close()


async def arrived(agent: Recorder, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(agent.got) < count:
            await asyncio.sleep(0.02)


async def test_a_request_is_answered_under_full_names(two: Two) -> None:
    reply = await two.a.request(f"{two.there}/b", "ask", {"n": 1}, timeout=10)
    assert (reply.sender, reply.data) == (f"{two.there}/b", {"heard": {"n": 1}})
    assert (two.b.got[0].sender, two.b.got[0].target) == (f"{two.here}/a", "b")
    assert not two.namesake.got


async def test_a_plain_name_is_at_home(two: Two) -> None:
    for target in ("b", f"{two.here}/b"):
        reply = await two.a.request(target, "ask", {}, timeout=10)
        assert reply.sender == "b"
    assert [message.sender for message in two.namesake.got] == ["a", "a"]
    assert not two.b.got


async def test_the_same_refusal_whatever_is_missing_there(two: Two) -> None:
    told = set()
    for target in (f"{two.there}/c", f"{two.there}/ghost", "nowhere/b"):
        with pytest.raises(PermissionDenied) as refused:
            await two.a.send(target, "note", {})
        told.add((refused.value.verdict.rule, refused.value.verdict.reason.replace(target, "")))
    assert len(told) == 1
    assert {rule for rule, _ in told} == {"not_accepted"}


async def test_either_side_can_forbid_it(two: Two) -> None:
    target = f"{two.there}/b"
    await two.a.send(target, "note", {"n": 1})
    await two.second.permit(f"{two.here}/a", [])
    with pytest.raises(PermissionDenied) as refused:
        await two.a.send(target, "note", {"n": 2})
    assert refused.value.verdict.rule == "not_accepted"
    await two.second.permit(f"{two.here}/*", ["*"])
    await two.a.send(target, "note", {"n": 3})
    await two.first.permit("a", ["*"])
    with pytest.raises(PermissionDenied) as refused:
        await two.a.send(target, "note", {"n": 4})
    assert refused.value.verdict.rule == "deny_by_default"
    await two.first.permit("a", [f"{two.there}/*"])
    await two.a.send(target, "note", {"n": 5})
    await arrived(two.b, 3)
    assert sorted(message.data["n"] for message in two.b.got) == [1, 3, 5]


async def test_an_id_means_one_message_for_each_target(two: Two) -> None:
    for target, n in ((f"{two.there}/b", 1), ("b", 2), (f"{two.there}/b", 1)):
        await two.a.send(target, "note", {"n": n}, id="same")
    with pytest.raises(IdReused):
        await two.a.send(f"{two.there}/b", "note", {"n": 3}, id="same")
    replies = await asyncio.gather(
        two.a.request("b", "ask", {"n": 4}, id="asked", timeout=10),
        two.a.request(f"{two.there}/b", "ask", {"n": 5}, id="asked", timeout=10),
    )
    assert [reply.data["heard"]["n"] for reply in replies] == [4, 5]
    await arrived(two.b, 2)
    assert sorted(message.data["n"] for message in two.b.got) == [1, 5]


async def test_only_who_was_asked_can_answer(two: Two) -> None:
    two.b.work = None
    asking = asyncio.create_task(two.a.request(f"{two.there}/b", "ask", {}, timeout=20))
    await arrived(two.b)
    for other in (two.namesake, two.a):
        with pytest.raises(ForeignReply):
            await other.send_reply_envelope(two.b.got[0], "answer", {"forged": True})
    assert (await two.b.got[0].reply("answer", {"mine": True})).delivered
    assert (await two.b.got[0].reply("answer", {"mine": True})).duplicate
    assert (await asking).data == {"mine": True}


async def test_a_dead_request_is_told_and_lies_with_the_target(two: Two) -> None:
    async def reject(_: AgentMessage) -> None:
        raise Reject("no")

    two.b.work = reject
    with pytest.raises(RequestFailed, match="b could not handle"):
        await two.a.request(f"{two.there}/b", "ask", {}, timeout=20)
    assert (await two.second.dead_letter("b")) is not None
    assert (await two.first.dead_letter("b")) is None


async def test_a_stream_comes_whole(two: Two) -> None:
    async def tell(message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write("once ")
            await out.write("upon")

    two.b.work = tell
    chunks: list[Any] = [chunk async for chunk in two.a.stream(f"{two.there}/b", "tell", {}, timeout=10)]
    assert chunks == [{"text": "once upon"}]


async def test_a_delayed_message_crosses(two: Two) -> None:
    sent = await two.a.send(f"{two.there}/b", "note", {}, delay=0.3)
    await arrived(two.b)
    assert two.b.got[0].message_id == sent
    with pytest.raises(PermissionDenied):
        await two.a.send(f"{two.there}/c", "note", {}, delay=60)


async def test_a_stopped_agent_gets_what_waited(two: Two, broker: Broker) -> None:
    await two.b.stop()
    sent = await two.a.send(f"{two.there}/b", "note", {})
    back: Agent[Any] = Recorder("b", **two.second.options("b"))
    async with back:
        await arrived(back)  # type: ignore[arg-type]
        assert back.got[0].message_id == sent  # type: ignore[attr-defined]
