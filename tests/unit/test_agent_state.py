"""Mediated state on a real server: what is repeated is recognised, what is no state is said to be none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from broker_policy.jetstream import publish
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.serving import Serving, serving


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


async def write(here: Serving, message_id: str, revision: int, **value: int) -> Verdict:
    body = {"op": "put", "revision": revision, "value": value}
    return await here.call("alice", "state", body, **{headers.MSG_ID: message_id})


async def test_a_repeated_write_is_recognised_also_when_another_came_on_top(here: Serving):
    first = await write(here, "i1", 0, n=1)
    second = await write(here, "i2", first.result["revision"], n=2)
    assert (await write(here, "i1", 0, n=1)).result == first.result
    assert (await write(here, "i2", first.result["revision"], n=2)).result == second.result


async def test_what_is_no_repetition_is_a_conflict(here: Serving):
    assert (await write(here, "i1", 0, n=1)).ok
    assert (await write(here, "i2", 0, n=1)).decision is Decision.STATE_CONFLICT


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b"\xff", b"1"])
async def test_what_is_no_object_is_answered_as_corrupt(here: Serving, body: bytes):
    revision = (await publish(here.nc, subjects.kv_key(subjects.STATE_BUCKET, "alice"), body, {})).sequence
    answer = await here.call("alice", "state", {"op": "get"}, **{headers.MSG_ID: "i1"})
    assert answer.result == {"revision": revision, "value": None, "corrupt": True}
