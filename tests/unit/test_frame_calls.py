"""Frames, flow and cancel on a real server: who may say what about whose stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from broker_policy.jetstream import StoredMessage, direct_get_page
from broker_policy.sealing import ReplyCapability, Sealer
from mas_nats.policy.shape import CLOCK_TOLERANCE_MS
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE
from tests.serving import SEALING_KEY, Serving, document, serving

ANOTHER_WORKER = Sealer("w9", [SEALING_KEY])
INSTANCE = "0" * 20


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc, document(("alice", "bob", "mallory"), allow={"alice": ("bob",)})) as up:
        yield up


def capability(**changes: object) -> ReplyCapability:
    """The right to answer a request that alice made of bob in frames."""
    now = time.time_ns() // 1_000_000
    asked = correlation("q1")
    made = ReplyCapability(NAMESPACE, "alice", INSTANCE, asked, "bob", "q1", now + 30_000, stream=True)
    return replace(made, **changes)  # type: ignore[arg-type]


async def frame(here: Serving, who: ReplyCapability, *, by: str = "bob", **body: Any) -> Verdict:
    fields = {headers.MSG_ID: "f", headers.TYPE: "stream", headers.REPLY_TOKEN: ANOTHER_WORKER.seal(who)}
    return await here.call(by, "frame", body, **fields)


async def stored(here: Serving) -> list[StoredMessage]:
    return await direct_get_page(here.nc, subjects.REPLIES_STREAM, ">", 1)


async def test_frames_are_stored_under_their_numbers_and_recorded_one_by_one(here: Serving):
    mine = capability()
    cursor = ""
    for number, chunks in enumerate((["a "], [{"n": 1}], ["b ", "c "])):
        verdict = await frame(here, mine, cursor=cursor, chunks=chunks, final=number == 2)
        assert verdict.ok
        cursor = verdict.result.get("cursor", "")
    assert verdict.result == {"ended": "done"}
    frames = await stored(here)
    assert [each.subject.rpartition(".")[2] for each in frames] == ["0", "1", "2"]
    assert [orjson.loads(each.data)["chunks"] for each in frames] == [["a "], [{"n": 1}], ["b c "]]
    assert [headers.END in each.headers for each in frames] == [False, False, True]
    lines = [line for record in await here.records("a") for line in record.decisions if line.op == "frame"]
    assert [(line.sender, line.target, line.decision) for line in lines] == [("bob", "alice", "ALLOWED")] * 3
    assert len({each.headers[headers.AUDIT] for each in frames}) == 3


@pytest.mark.parametrize(
    ("who", "by", "decision"),
    [
        (capability(), "mallory", Decision.REPLY_FOREIGN),
        (capability(), "alice", Decision.REPLY_FOREIGN),
        (capability(namespace="elsewhere"), "bob", Decision.REPLY_FOREIGN),
        (capability(stream=False), "bob", Decision.INVALID),
        (capability(deadline=1 + CLOCK_TOLERANCE_MS), "bob", Decision.REPLY_LATE),
    ],
)
async def test_frames_that_nobody_asked_this_agent_for(
    here: Serving, who: ReplyCapability, by: str, decision: Decision
):
    if who.deadline > 10**9:
        who = replace(who, deadline=time.time_ns() // 1_000_000 + 30_000)
    assert (await frame(here, who, by=by, chunks=["a"])).decision is decision
    assert await stored(here) == []


async def test_a_dead_letter_ends_the_stream_where_it_was(here: Serving):
    mine = capability()
    assert (await frame(here, mine, chunks=["a"])).ok
    fields = {headers.REPLY_TOKEN: ANOTHER_WORKER.seal(mine), headers.MESSAGE_ID: "q1"}
    await here.nc.request(subjects.inbox("bob"), b"{}", timeout=2, headers=fields)
    sequence = (await here.log())[-1].sequence
    failure = {"sequence": sequence, "attempt": 1, "error_class": "Reject", "error": "", "retryable": False}
    assert (await here.call("bob", "fail", failure)).result["dead"] is True
    first, second = await stored(here)
    assert second.subject == first.subject[:-1] + "1"
    assert second.headers[headers.FAILURE] == "DEAD"
    late = await frame(here, mine, chunks=["a", "b"])
    assert late.result["taken"] == 1
    after = await frame(here, mine, cursor=late.result["cursor"], chunks=["b"])
    assert (after.duplicate, after.result) == (True, {"ended": "failed"})


async def test_a_reply_and_a_stream_to_one_request_are_not_mixed(here: Serving):
    mine = capability()
    fields = {headers.MSG_ID: "r", headers.TYPE: "t", headers.REPLY_TOKEN: ANOTHER_WORKER.seal(mine)}
    assert (await here.call("bob", "reply", {"n": 1}, **fields)).ok
    verdict = await frame(here, mine, chunks=["a"])
    assert (verdict.duplicate, verdict.result) == (True, {"ended": "done"})
    other = capability(message_id="q2", correlation=correlation("q2"))
    assert (await frame(here, other, chunks=["a"])).ok
    fields[headers.REPLY_TOKEN] = ANOTHER_WORKER.seal(other)
    assert (await here.call("bob", "reply", {"n": 1}, **fields)).duplicate
    assert len(await stored(here)) == 2


async def test_a_frame_does_not_wait_behind_messages(here: Serving):
    """It comes after two thousand of them, and is answered while most still wait to be committed."""
    sends = [asyncio.create_task(here.send("alice", "bob", {"n": n})) for n in range(2000)]
    await asyncio.sleep(0)  # every one is on its way
    last = asyncio.create_task(here.send("alice", "bob", {"n": "the control"}))
    await asyncio.sleep(0)
    assert (await frame(here, capability(), chunks=["a"])).ok
    waiting = sum(not task.done() for task in sends)
    assert waiting > len(sends) / 2
    assert not last.done()
    assert all(verdict.ok for verdict in await asyncio.gather(*sends, last))


def about(target: str, message_id: str = "q1") -> dict[str, str]:
    return {headers.MSG_ID: message_id, headers.TARGET: target, headers.TYPE: "flow"}


async def test_flow_and_cancel_name_who_said_it(here: Serving):
    one = await here.nc.subscribe(subjects.flow("bob", INSTANCE, correlation("q1")))
    everyone = await here.nc.subscribe(subjects.flow("bob", "all", correlation("q1")))
    assert (await here.call("alice", "flow", {"to": INSTANCE, "read": 7}, **about("bob"))).ok
    assert orjson.loads((await one.next_msg(2)).data) == {"requester": "alice", "read": 7}
    assert (await here.call("alice", "cancel", {}, **about("bob"))).ok
    assert orjson.loads((await everyone.next_msg(2)).data) == {"requester": "alice", "cancelled": True}
    lines = [line for record in await here.records("a") for line in record.decisions]
    assert [(line.op, line.sender, line.target, line.message_id) for line in lines] == [
        ("cancel", "alice", "bob", "q1")
    ]


@pytest.mark.parametrize("op", ["flow", "cancel"])
async def test_who_may_not_send_may_not_disturb(here: Serving, op: str):
    heard = await here.nc.subscribe("mas.reply.bob.>")
    verdict = await here.call("mallory", op, {"to": INSTANCE, "read": 1}, **about("bob"))
    assert verdict.decision is Decision.AUTHZ_DENIED
    with pytest.raises(nats.errors.TimeoutError):
        await heard.next_msg(0.2)


@pytest.mark.parametrize(
    "body",
    [{"read": -1}, {"read": "7"}, {"read": True}, {"read": 2**40}, {}, {"read": 1, "to": "*"}, {"to": "a.b"}],
)
async def test_a_flow_that_is_none(here: Serving, body: dict[str, Any]):
    assert (await here.call("alice", "flow", body, **about("bob"))).decision is Decision.INVALID
