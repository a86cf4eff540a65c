"""Mediated state on a real server: what is repeated is recognised, what is no state is said to be none."""

from __future__ import annotations

import types
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from broker_policy.audit.record import Outcome
from broker_policy.jetstream import publish
from broker_policy.tenants.streams import STATE_HISTORY
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.lossy import Lossy
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


@pytest.mark.parametrize("again", [{"n": 2}, {"n": 1}])
async def test_an_id_that_was_used_over_another_revision_stores_nothing(here: Serving, again: dict[str, int]):
    first = await write(here, "i1", 0, n=1)
    verdict = await write(here, "i1", first.result["revision"], **again)
    assert (verdict.decision, verdict.ok) == (Decision.ID_REUSED, False)
    stored = await here.call("alice", "state", {"op": "get"}, **{headers.MSG_ID: "i2"})
    assert stored.result["revision"] == first.result["revision"]
    assert await here.outcomes_of_acts(2) == [Outcome.APPLIED, Outcome.FAILED]


async def test_nor_does_one_with_another_value_over_the_same(here: Serving):
    assert (await write(here, "i1", 0, n=1)).ok
    assert (await write(here, "i1", 0, n=2)).decision is Decision.ID_REUSED
    assert (await write(here, "i1", 0, n=1)).ok


async def test_an_id_of_another_agent_s_write_stores_nothing(here: Serving):
    """An agent whose state is direct chooses the ids of its writes."""
    body = b'{"n":1}'
    fields = {headers.MSG_ID: "alice.i1", headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
    await publish(here.nc, subjects.kv_key(subjects.STATE_BUCKET, "bob"), body, fields)
    assert (await write(here, "i1", 0, n=1)).decision is Decision.ID_REUSED


class IdFirst(Lossy):
    """A server that looks at the id before the revision."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self._acks: dict[str, dict[str, Any]] = {}

    async def request(self, subject: str, *args: Any, **more: Any) -> Any:
        message_id = (more.get("headers") or {}).get(headers.MSG_ID, "")
        if not subject.startswith("$KV.state."):
            return await super().request(subject, *args, **more)
        if message_id in self._acks:
            known = {**self._acks[message_id], "duplicate": True}
            return types.SimpleNamespace(data=orjson.dumps(known))
        answer = await super().request(subject, *args, **more)
        self._acks[message_id] = orjson.loads(answer.data)
        return answer


async def test_where_the_server_looks_at_the_id_first_only_the_same_write_is_a_repetition(nc: Client):
    async with serving(nc, through=IdFirst(nc)) as here:
        first = await write(here, "i1", 0, n=1)
        assert (await write(here, "i2", first.result["revision"], n=2)).ok
        assert (await write(here, "i1", 0, n=1)).result == first.result
        assert (await write(here, "i1", 0, n=2)).decision is Decision.ID_REUSED
        assert (await write(here, "i1", first.result["revision"] + 1, n=1)).decision is Decision.ID_REUSED


async def test_a_repetition_of_a_write_that_is_not_kept_any_more_is_no_new_one(nc: Client):
    """The bucket keeps so many revisions; ids are known for longer."""
    async with serving(nc, through=IdFirst(nc)) as here:
        first = await write(here, "i1", 0, n=1)
        last = first.result["revision"]
        for number in range(STATE_HISTORY):
            last = (await write(here, f"more{number}", last, n=number)).result["revision"]
        assert (await write(here, "i1", 0, n=1)).result == first.result
        assert (await write(here, "i1", last, n=3)).decision is Decision.ID_REUSED


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b"\xff", b"1"])
async def test_what_is_no_object_is_answered_as_corrupt(here: Serving, body: bytes):
    revision = (await publish(here.nc, subjects.kv_key(subjects.STATE_BUCKET, "alice"), body, {})).sequence
    answer = await here.call("alice", "state", {"op": "get"}, **{headers.MSG_ID: "i1"})
    assert answer.result == {"revision": revision, "value": None, "corrupt": True}
