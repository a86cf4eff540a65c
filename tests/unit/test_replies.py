"""Replies on a real server: who may answer what, once, and until when; whoever holds the token."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from nats.aio.client import Client

from broker_policy.jetstream import StoredMessage, direct_get_page
from broker_policy.sealing import ReplyCapability, Sealer
from broker_policy.tenants.sealing_ring import SealingKey
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
    """The right to answer a request that alice made of bob."""
    now = time.time_ns() // 1_000_000
    made = ReplyCapability(NAMESPACE, "alice", INSTANCE, correlation("q1"), "bob", "q1", now + 30_000)
    return replace(made, **changes)  # type: ignore[arg-type]


async def reply(here: Serving, agent: str, token: str, body: object = None, **fields: str) -> Verdict:
    known = {headers.MSG_ID: "r1", headers.TYPE: "answer", headers.REPLY_TOKEN: token}
    return await here.call(agent, "reply", body, **(known | fields))


async def answers(here: Serving) -> list[StoredMessage]:
    return await direct_get_page(here.nc, subjects.REPLIES_STREAM, ">", 1)


async def test_a_request_carries_the_right_to_answer_it(here: Serving):
    deadline = str(time.time_ns() // 1_000_000 + 5_000)
    fields = {headers.MSG_ID: "q1", headers.TARGET: "bob", headers.TYPE: "ask"}
    fields |= {headers.INSTANCE: INSTANCE, headers.DEADLINE: deadline}
    assert (await here.call("alice", "request", {"n": 1}, **fields)).ok
    token = (await here.log())[-1].headers[headers.REPLY_TOKEN]
    got = await here.nc.subscribe(subjects.replies_of("alice", INSTANCE))
    assert (await reply(here, "bob", token, {"n": 2})).ok
    delivered = await got.next_msg(timeout=2)
    assert delivered.subject.split(".")[2:5] == ["alice", INSTANCE, correlation("q1")]
    assert orjson.loads(delivered.data) == {"n": 2}
    assert delivered.headers is not None
    assert (delivered.headers[headers.SENDER], delivered.headers[headers.MESSAGE_ID]) == ("bob", "r1")


async def test_answered_once_whatever_is_said_again(here: Serving):
    token = ANOTHER_WORKER.seal(capability())
    first = await reply(here, "bob", token, {"n": 1})
    again = await reply(here, "bob", token, {"n": 2}, **{headers.MSG_ID: "r2"})
    assert [(each.ok, each.duplicate) for each in (first, again)] == [(True, False), (True, True)]
    (stored,) = await answers(here)
    assert orjson.loads(stored.data) == {"n": 1}


@pytest.mark.parametrize("who", ["mallory", "alice"])
async def test_a_token_is_worth_nothing_to_anybody_else(here: Serving, who: str):
    verdict = await reply(here, who, ANOTHER_WORKER.seal(capability()))
    assert verdict.decision is Decision.REPLY_FOREIGN
    assert await answers(here) == []


async def test_tokens_of_other_systems_namespaces_and_times(here: Serving):
    foreign_key = Sealer("w1", [SealingKey(SEALING_KEY.key_id, b"x" * 32)])
    late = capability(deadline=time.time_ns() // 1_000_000 - CLOCK_TOLERANCE_MS - 1)
    for token, decision in (
        ("", Decision.REPLY_FOREIGN),
        ("x" * 5000, Decision.REPLY_FOREIGN),
        (foreign_key.seal(capability()), Decision.REPLY_FOREIGN),
        (ANOTHER_WORKER.seal(capability(namespace="elsewhere")), Decision.REPLY_FOREIGN),
        (ANOTHER_WORKER.seal(late), Decision.REPLY_LATE),
    ):
        assert (await reply(here, "bob", token)).decision is decision
    assert await answers(here) == []


async def test_what_is_no_reply_has_not_used_up_its_request(here: Serving):
    token = ANOTHER_WORKER.seal(capability())
    for body in (b"no json", b"[]", b'{"x":"' + b"y" * 1_000_001 + b'"}'):
        assert not (await reply(here, "bob", token, body)).ok
    assert not (await reply(here, "bob", token, {}, **{headers.TYPE: ""})).ok
    verdict = await reply(here, "bob", token, {"n": 1})
    assert (verdict.ok, verdict.duplicate) == (True, False)


async def test_a_requester_is_told_that_there_will_be_no_reply(here: Serving):
    fields = {headers.REPLY_TOKEN: ANOTHER_WORKER.seal(capability()), headers.MESSAGE_ID: "q1"}
    await here.nc.request(subjects.inbox("bob"), b"{}", timeout=2, headers=fields)
    sequence = (await here.log())[-1].sequence
    failure = {"sequence": sequence, "attempt": 1, "error_class": "Reject", "error": "no", "retryable": False}
    verdict = await here.call("bob", "fail", failure)
    assert verdict.result["dead"] is True
    (told,) = await answers(here)
    assert told.headers[headers.FAILURE] == "DEAD"
    assert "Reject" in orjson.loads(told.data)["reason"]
