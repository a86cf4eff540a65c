"""What the commit lanes rely on, with three copies: conflicts, duplicates, batches, a new leader."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from broker_policy.audit.record import RecordKey, RecordKind
from broker_policy.commit.writer import RecordWriter
from broker_policy.jetstream import (
    DUPLICATE_IN_BATCH,
    MESSAGE_LIMIT,
    JetStreamError,
    Unsettled,
    api,
    checked,
    get_known,
    get_last,
    publish,
    stream_info,
)
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE
from tests.cluster.conftest import Cluster

INBOX = subjects.INBOX_STREAM


@pytest.fixture
async def namespace(cluster: Cluster) -> str:
    return await cluster.namespace(["a"], {}, limits=Limits(inbox_messages=5))


@pytest.fixture
async def nc(cluster: Cluster, namespace: str) -> AsyncIterator[ResilientClient]:
    async with cluster.tenant(namespace) as client:
        yield client


def record() -> str:
    """A subject of its own in the log."""
    return subjects.audit_record(f"t{secrets.token_hex(4)}", 1)


async def batch(nc: Any, messages: list[tuple[str, dict[str, str]]]) -> dict[str, Any]:
    """An atomic batch of messages with these subjects and headers."""
    name = secrets.token_hex(8)
    for number, (subject, own) in enumerate(messages, start=1):
        fields = {**own, headers.BATCH_ID: name, headers.BATCH_SEQUENCE: str(number)}
        if number < len(messages):
            await nc.publish(subject, b"x", headers=fields)
    fields[headers.BATCH_COMMIT] = "1"
    return checked((await nc.request(subject, b"x", headers=fields, timeout=5)).data)


async def step_down(nc: Any, stream: str) -> None:
    """Make another node lead the stream."""
    before = (await stream_info(nc, stream))["cluster"]["leader"]
    await api(nc, f"STREAM.LEADER.STEPDOWN.{stream}", {})
    async with asyncio.timeout(30):
        while True:
            try:
                if (await stream_info(nc, stream, timeout=1))["cluster"]["leader"] != before:
                    return
            except (Unsettled, TimeoutError):
                pass
            await asyncio.sleep(0.05)


async def test_both_codes_of_a_lost_race_are_met(nc: ResilientClient) -> None:
    """10071 where the leader knows the newer revision, 10164 where one is still on its way to the others."""
    subject = subjects.kv_key(subjects.STATE_BUCKET, "a")
    codes = set()
    sequence = 0
    async with asyncio.timeout(20):
        while codes != set(WRONG_LAST_SEQUENCE):
            expected = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(sequence)}
            results = await asyncio.gather(
                *(publish(nc, subject, b"{}", expected) for _ in range(8)), return_exceptions=True
            )
            stored = [result.sequence for result in results if not isinstance(result, BaseException)]
            codes |= {result.code for result in results if isinstance(result, JetStreamError)}
            assert len(stored) <= 1
            newest = await get_last(nc, subjects.kv_stream(subjects.STATE_BUCKET), subject)
            assert newest is not None
            sequence = newest.sequence
            with pytest.raises(JetStreamError) as late:
                await publish(nc, subject, b"{}", {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
            codes.add(late.value.code)


async def test_batches_are_refused_as_on_one_node(nc: ResilientClient) -> None:
    known = record()
    await publish(nc, known, b"x", {headers.MSG_ID: "known"})
    before = (await stream_info(nc, INBOX))["state"]["last_seq"]
    with pytest.raises(JetStreamError) as refused:
        await batch(nc, [(record(), {}), (record(), {headers.MSG_ID: "known"})])
    assert refused.value.code == DUPLICATE_IN_BATCH
    with pytest.raises(JetStreamError) as refused:
        await batch(nc, [(record(), {}), *((subjects.inbox("a"), {}) for _ in range(6))])
    assert refused.value.code == MESSAGE_LIMIT
    assert "per subject" in refused.value.description
    assert (await stream_info(nc, INBOX))["state"]["last_seq"] == before
    stored = await batch(nc, [(record(), {}), *((subjects.inbox("a"), {}) for _ in range(5))])
    assert (stored["count"], stored["seq"]) == (6, before + 6)


async def test_a_repetition_that_overtakes_its_first_is_never_stored_twice(nc: ResilientClient) -> None:
    """The server may answer that the id is under way: that is neither yes nor no, and is repeated."""
    answers: list[object] = []
    for _ in range(40):
        subject, fields = record(), {headers.MSG_ID: secrets.token_hex(8)}
        results = await asyncio.gather(
            *(publish(nc, subject, b"x", fields) for _ in range(4)), return_exceptions=True
        )
        answers += results
        stored = [each for each in results if not isinstance(each, BaseException) and not each.duplicate]
        assert len(stored) == 1
        assert (await publish(nc, subject, b"x", fields)).sequence == stored[0].sequence
    assert not [each for each in answers if isinstance(each, JetStreamError)]


async def test_ids_and_acknowledged_messages_outlast_a_change_of_leader(nc: ResilientClient) -> None:
    subject, fields = record(), {headers.MSG_ID: "outlasts"}
    first = await publish(nc, subject, b"x", fields)
    await step_down(nc, INBOX)
    again = await publish(nc, subject, b"x", fields)
    assert (again.duplicate, again.sequence) == (True, first.sequence)
    assert await get_known(nc, INBOX, first.sequence) is not None


async def test_a_batch_is_whole_or_not_there_whatever_leads(nc: ResilientClient, namespace: str) -> None:
    """Batches whose answers are lost while the leader changes: the writer finds out, and is right."""
    outcomes = set()
    for number in range(6):
        writer = RecordWriter(nc, namespace, f"t{secrets.token_hex(4)}", RecordKey(b"k" * 32))
        await writer.write(RecordKind.OPEN)
        prepared = writer.prepare(RecordKind.DECISIONS)
        follows = [record() for _ in range(20)]
        name = secrets.token_hex(8)
        stepping = None
        for position, subject in enumerate([prepared.subject, *follows], start=1):
            fields = {headers.BATCH_ID: name, headers.BATCH_SEQUENCE: str(position)}
            if position == 1:
                fields |= prepared.fields
            if position == len(follows) + 1:
                fields[headers.BATCH_COMMIT] = "1"
            if position == 1 + 4 * number:
                await nc.flush()
                stepping = asyncio.create_task(step_down(nc, INBOX))
            await nc.publish(subject, prepared.body if position == 1 else b"x", headers=fields)
        await nc.flush()  # and nobody hears the answer
        if stepping is not None:
            await stepping
        stored = await writer.resolve(prepared)
        outcomes.add(bool(stored))
        there = [await get_last(nc, INBOX, subject) is not None for subject in follows]
        assert all(there) if stored else not any(there)
    assert outcomes <= {True, False}


async def test_a_worker_never_follows_an_older_policy_than_it_confirms(cluster: Cluster) -> None:
    """Each change is followed at once, whichever copy answers the worker that reads it."""
    for number in range(4):
        namespace = await cluster.namespace(["a", "b"], {"a": ["b"]} if number % 2 else {})
        async with cluster.control() as (_, store):
            stored = await store.get(namespace)
            assert stored is not None
            await store.wait_confirmed(stored.sequence)


def test_answers_that_leave_it_open() -> None:
    for error in (
        {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"},
        {"code": 503, "description": "raft: not leader"},
        {"code": 409, "err_code": 10158, "description": "duplicate message id is in process"},
        {"code": 503, "err_code": 10077, "description": "store is closed"},
    ):
        with pytest.raises(Unsettled):
            checked(orjson.dumps({"error": error}))
    for error in (
        {"code": 400, "err_code": 10071, "description": "wrong last sequence: 7"},
        {"code": 503, "err_code": 10077, "description": "maximum messages per subject exceeded"},
        {"code": 503, "err_code": 10023, "description": "insufficient resources"},
    ):
        with pytest.raises(JetStreamError):
            checked(orjson.dumps({"error": error}))
