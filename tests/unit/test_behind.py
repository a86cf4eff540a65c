"""Messages that go right behind their record: none is stored without it, whoever comes between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from broker_policy.audit.record import Outcome, RecordKind
from broker_policy.commit import behind
from broker_policy.jetstream import publish
from mas_nats.asking import Published
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision
from tests.lossy import Lossy, batches, from_the_second_on, messages, records
from tests.serving import Serving, document, serving
from tests.unit.test_commit_lane import AGENTS, LIMITS, many, occupy, settled, stored


class Between(Lossy):
    """Notes what is published, and lets another worker come between a record and its message."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.intruders = 0
        self._ids = count()

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 1, headers: dict[str, str] | None = None
    ) -> Any:
        fields = headers or {}
        self.seen.append((subject, fields))
        if self.intruders and messages(subject, fields) and behind.headers.EXPECTED_LAST_MSG_ID in fields:
            self.intruders -= 1
            other = {behind.headers.MSG_ID: f"other{next(self._ids)}"}
            await self.nc.publish(subjects.inbox("carol"), b"{}", headers=other)
        return await super().request(subject, payload, timeout, headers)

    def published(self) -> list[bool]:
        """Of each publish of a message by itself whether it depended on what was stored before."""
        return [
            headers.EXPECTED_LAST_MSG_ID in fields for at in self.seen if messages(*at) for fields in [at[1]]
        ]


@pytest.fixture
def between(nc: Client) -> Between:
    return Between(nc)


@pytest.fixture
async def here(nc: Client, between: Between) -> AsyncIterator[Serving]:
    async with serving(nc, document(AGENTS, limits=LIMITS), through=between) as up:
        yield up


async def test_it_is_published_once_and_with_the_record(here: Serving, between: Between):
    assert (await here.send("alice", "bob", id="new0")).ok
    assert set(await stored(here)) == {"new0"}
    assert between.published() == [True]
    assert await settled(here, "new0") == Outcome.COMMITTED


async def test_its_acknowledgement_is_its_record_s_too(here: Serving, between: Between):
    await here.send("alice", "bob", id="first")  # with it the lane has begun
    between.seen.clear()
    assert (await here.send("alice", "bob", id="new0")).ok
    assert [subject for subject, _ in between.seen if subject.startswith("mas.audit.")] == []
    assert (await stored(here))["new0"]


async def test_one_that_is_not_answered_is_stored_once_with_one_record(here: Serving, between: Between):
    await here.send("alice", "bob", id="first")
    between.lose(messages)
    verdict = await here.send("alice", "bob", id="new0")
    assert (verdict.ok, verdict.duplicate) == (True, False)
    assert between.published() == [True, True, False]
    assert set(await stored(here)) == {"first", "new0"}
    assert await settled(here, "new0") == Outcome.COMMITTED
    decided = [line for record in await here.records() for line in record.decisions]
    assert [line.message_id for line in decided] == ["first", "new0"]


async def test_a_duplicate_says_nothing_of_the_record_before_it(here: Serving, between: Between):
    await here.send("alice", "bob", id="first")
    await occupy(here, "bob", 1)
    between.swallow(records)
    verdict = await here.send("alice", "bob", {"n": 0}, id="old0")
    assert (verdict.ok, verdict.duplicate) == (True, True)
    assert await settled(here, "old0") == Outcome.DUPLICATE


async def test_where_the_log_takes_no_record_a_repetition_lets_nobody_else_in(
    here: Serving, between: Between, monkeypatch: pytest.MonkeyPatch
):
    """Another worker stored the message last, so what would follow it would be stored without a decision."""
    monkeypatch.setattr("mas_nats.asking._FEW", 0)  # both arrive together
    await here.send("alice", "bob", id="first")
    await occupy(here, "bob", 1)
    between.refuse(records, times=2)
    between.refuse(batches)
    calls = [here.send("alice", "bob", {"n": n}, id=name) for n, name in ((0, "old0"), (1, "b"))]
    assert not any(verdict.ok for verdict in await asyncio.gather(*calls))
    assert [each.subject for each in await here.log()][-1] == subjects.inbox("bob")
    assert [each.headers.get(headers.MESSAGE_ID) for each in await here.log()][-1] is None  # old0


async def test_one_whose_record_went_over_an_earlier_connection_follows_another(
    here: Serving, between: Between, monkeypatch: pytest.MonkeyPatch
):
    await here.send("alice", "bob", id="first")

    async def cut(first: Published, *_: Any, **__: Any) -> Any:
        monkeypatch.undo()
        await here.nc.publish(first.subject, first.payload, headers=first.headers)
        await here.nc.flush()
        here.nc.stats["reconnects"] += 1
        raise nats.errors.ConnectionReconnectingError

    monkeypatch.setattr(between, "request_behind", cut)
    assert (await here.send("alice", "bob", id="new0")).ok
    kinds = [record.kind for record in await here.records("i")]
    assert kinds == [RecordKind.OPEN, RecordKind.DECISIONS, RecordKind.DECISIONS, RecordKind.MARK]
    assert set(await stored(here)) == {"first", "new0"}


async def test_a_record_that_may_be_stored_keeps_its_number(here: Serving, between: Between):
    """Neither the message is answered nor the record stored a second time: the log says that it is full."""
    await here.send("alice", "bob", id="first")
    between.lose(messages)
    between.refuse(from_the_second_on(records))
    verdict = await here.send("alice", "bob", id="new0")
    assert between._faults == []
    assert (verdict.ok, verdict.duplicate) == (True, False)
    assert set(await stored(here)) == {"first", "new0"}
    decided = [line for record in await here.records() for line in record.decisions]
    assert [line.message_id for line in decided] == ["first", "new0"]


async def test_another_worker_between_costs_a_second_try(here: Serving, between: Between):
    between.intruders = 1
    verdict = await here.send("alice", "bob", id="new0")
    assert (verdict.ok, verdict.duplicate) == (True, False)
    assert set(await stored(here)) == {"new0"}
    assert between.published() == [True, False]
    assert await settled(here, "new0") == Outcome.COMMITTED


async def test_without_its_record_no_message_is_stored(here: Serving, between: Between):
    """The record does not arrive at first."""
    await here.send("alice", "bob", id="first")
    between.swallow(records)
    assert (await here.send("alice", "bob", id="new0")).ok
    assert set(await stored(here)) == {"first", "new0"}
    assert between.published() == [True, True, False]


async def test_that_is_because_of_the_condition(
    here: Serving, between: Between, monkeypatch: pytest.MonkeyPatch
):
    await here.send("alice", "bob", id="first")
    monkeypatch.setattr(behind.headers, "EXPECTED_LAST_MSG_ID", "Some-Header")
    between.swallow(records)
    await here.send("alice", "bob", id="new0")
    with pytest.raises(KeyError):  # no decision lies before it
        await stored(here)


async def test_several_go_together_and_one_duplicate_takes_along_only_those_behind_it(
    here: Serving, between: Between
):
    await occupy(here, "bob", 1)
    calls = [here.send("alice", "bob", {"n": n}, id=name) for n, name in ((1, "a"), (0, "old0"), (2, "b"))]
    verdicts = await asyncio.gather(*calls)
    assert [(verdict.ok, verdict.duplicate) for verdict in verdicts] == [
        (True, False),
        (True, True),
        (True, False),
    ]
    assert set(await stored(here)) == {"a", "b"}


async def test_a_full_inbox_is_told(here: Serving):
    for _ in range(LIMITS.inbox_messages):
        await here.nc.publish(subjects.inbox("full"), b"{}")
    verdict = await here.send("alice", "full", id="new0")
    assert verdict.decision is Decision.INBOX_FULL
    assert await settled(here, "new0") == Outcome.NOT_COMMITTED


async def test_where_it_is_always_in_vain_it_is_left_alone_for_some_time(
    here: Serving, between: Between, monkeypatch: pytest.MonkeyPatch
):
    between.intruders = 100
    for number in range(5):
        await here.send("alice", "bob", id=f"new{number}")
    assert between.published() == [True, False] * 3 + [False] * 2
    between.intruders = 0
    monkeypatch.setattr(
        behind.time, "monotonic", lambda now=behind.time.monotonic: now() + behind._LEFT_ALONE
    )
    assert (await many(here, 1, first=5))[0].ok
    assert between.published()[-1:] == [True]
    assert set(await stored(here)) == {f"new{number}" for number in range(6)}


async def test_many_writers_at_once(nc: Client, here: Serving):
    """Somebody stores all the time while messages go one by one."""

    async def others() -> None:
        for number in count():
            await publish(nc, subjects.inbox("carol"), b"{}", {headers.MSG_ID: f"other{number}"})

    writing = asyncio.create_task(others())
    try:
        for number in range(60):
            verdict = await here.send("alice", "bob", {"n": number}, id=f"new{number}")
            assert (verdict.ok, verdict.duplicate) == (True, False)
    finally:
        writing.cancel()
    assert set(await stored(here)) == {f"new{number}" for number in range(60)}


async def test_where_several_nodes_keep_the_log_it_waits_for_the_record(here: Serving, between: Between):
    here.service._room.copies = 3
    assert (await here.send("alice", "bob", id="new0")).ok
    assert between.published() == [False]


async def test_a_lane_that_ends_does_not_wait_for_what_is_not_answered(here: Serving, between: Between):
    """Neither the record nor the message behind it is."""
    asked, request = asyncio.Event(), between.request

    async def silent(subject: str, *what: Any, **more: Any) -> Any:
        if not subject.startswith(("mas.inbox.", "mas.audit.")):
            return await request(subject, *what, **more)
        if subject.startswith("mas.inbox."):
            asked.set()
        return await asyncio.sleep(60)

    between.request = silent  # type: ignore[method-assign]
    sending = asyncio.create_task(here.send("alice", "bob", id="new0"))
    await asked.wait()
    lane = here.service._lanes[0]
    lane.cancel()
    done, _ = await asyncio.wait([lane], timeout=2)
    between.request = request  # type: ignore[method-assign]
    sending.cancel()
    assert done == {lane}
