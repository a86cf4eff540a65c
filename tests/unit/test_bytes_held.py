"""Nobody holds more of a stream than stays free for all others (ADR 44)."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest
from nats.aio.client import Client

from broker_policy.bytes_held import ENVELOPE, BytesHeld
from broker_policy.commit.inbox_bytes import InboxBytes
from broker_policy.jetstream import publish, stream_info
from mas_nats.policy.document import Limits
from mas_nats.policy.shares import most_for_one
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.serving import Serving, document, serving

MIB = 1 << 20
EVERYBODY = ("alice", "bob", "carol", "dave", "eve")
LOG = 4 * MIB
OVERSHOOT = MIB
"""More than a sender stores between two looks."""
LARGE = {"text": "x" * 30_000}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than a sender can fill what is left."""
    monkeypatch.setattr("broker_policy.commit.log_room.LOOK_EVERY", 0.02)
    monkeypatch.setattr("broker_policy.delayed.stream.COUNT_EVERY", 0.02)


# -- counting -----------------------------------------------------------------------------------------------
def held(workers: int = 1) -> BytesHeld:
    return BytesHeld(lambda: workers)


def test_what_waits_is_what_was_stored_last():
    counted = held()
    for size in (100, 100, 5_000, 7_000):
        counted.stored("bob", size)
    counted.stored("carol", 1)
    average = (100 + 100 + 5_000 + 7_000) / 4
    assert counted.of("bob", 4) == 4 * (average + ENVELOPE)
    assert counted.of("bob", 2) == 2 * (average + ENVELOPE), "within a block only the average is known"
    assert counted.of("carol", 1) == 1 + ENVELOPE
    assert counted.of("bob", 0) == 0


def test_of_large_ones_each_block_counts_by_itself():
    counted = held()
    for size in (80_000,) * 10 + (70_000,) * 3 + (10,) * 50:
        counted.stored("bob", size)
    assert counted.of("bob", 50) == 50 * (10 + ENVELOPE)
    assert counted.of("bob", 52) == 50 * 10 + 2 * 70_000 + 52 * ENVELOPE
    assert counted.of("bob", 54) == 50 * 10 + 3 * 70_000 + 80_000 + 54 * ENVELOPE


def test_others_have_stored_as_much():
    counted = held(workers=4)
    for _ in range(10):
        counted.stored("bob", 100_000)
    assert counted.of("bob", 40) == 40 * (100_000 + ENVELOPE)
    assert counted.of("bob", 4) == 4 * (100_000 + ENVELOPE)


def test_what_was_stored_before_it_was_started_it_does_not_know():
    counted = held()
    assert counted.of("bob", 1_000) == 1_000 * ENVELOPE
    counted.stored("bob", 100_000)
    assert counted.of("bob", 1_000) == 100_000 + 1_000 * ENVELOPE


def test_it_remembers_as_much_as_the_stream_may_hold_and_not_for_ever():
    counted = held()
    counted.reach(1 << 30)
    for _ in range(20_000):
        counted.stored("bob", 1 * MIB)
    assert counted.of("bob", 1024) >= 1 << 30


def test_it_needs_little_memory_for_thousands_of_agents():
    counted = held()
    counted.reach(1 << 24)
    tracemalloc.start()
    try:
        for agent in range(20):
            for _ in range(1_100):
                counted.stored(f"agent-{agent}", 70_000)
        assert tracemalloc.get_traced_memory()[0] < 20 * 8_192
    finally:
        tracemalloc.stop()


def test_half_of_it_is_nobodys_business():
    limit = 100 * MIB
    assert most_for_one(50 * MIB, limit) is None
    assert most_for_one(60 * MIB, limit) == 40 * MIB
    assert most_for_one(limit, limit) is None
    assert most_for_one(2 * limit, limit) is None


def test_who_holds_little_is_not_to_blame():
    assert most_for_one(100 * MIB - 1, 100 * MIB) == 100 * MIB // 256
    assert most_for_one(MIB - 1, MIB) == 65_536


# -- inboxes ------------------------------------------------------------------------------------------------
async def fill(send: Callable[[], object], most: int = 1_000) -> Verdict:
    """Send until something is refused."""
    for _ in range(most):
        verdict = await send()  # type: ignore[misc]
        if not verdict.ok:
            return verdict
    raise AssertionError("nothing was refused")


async def used(nc: Client, stream: str = subjects.INBOX_STREAM) -> int:
    return int((await stream_info(nc, stream))["state"]["bytes"])


async def test_an_inbox_that_nobody_reads_leaves_half_of_the_log(nc: Client):
    """Bob is away. Who sends to him is told; everybody else goes on, each with as much as is free."""
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        refused = await fill(lambda: here.send("alice", "bob", LARGE))
        assert (refused.decision, refused.rule) == (Decision.INBOX_FULL, "log_bytes")
        assert refused.retry
        assert "bob" in refused.reason
        assert LOG // 2 < await used(nc) < LOG // 2 + OVERSHOOT
        assert (await here.send("alice", "carol", LARGE)).ok, "she may send to others"
        refused = await fill(lambda: here.send("alice", "dave", LARGE))
        assert refused.decision is Decision.INBOX_FULL
        assert await used(nc) < LOG * 3 // 4 + OVERSHOOT
        for _ in range(20):
            assert (await here.send("eve", "carol", {"n": 1})).ok
        assert all(each.ok for each in await asyncio.gather(*(here.send("eve", "alice") for _ in range(200))))


async def test_once_it_is_read_it_takes_more(nc: Client):
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        assert (await fill(lambda: here.send("alice", "bob", LARGE))).decision is Decision.INBOX_FULL
        await nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox("bob"))
        await until_accepted(here)


async def until_accepted(here: Serving) -> None:
    """Though nothing is written meanwhile, which is what workers look after."""
    async with asyncio.timeout(5):
        while not (await here.send("alice", "bob", LARGE)).ok:
            await asyncio.sleep(0.05)


async def test_without_a_look_at_inboxes_nobody_could_send(nc: Client, monkeypatch: pytest.MonkeyPatch):
    """The control."""

    async def look(*_: object) -> None:
        return

    monkeypatch.setattr(InboxBytes, "look", look)
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        assert (await fill(lambda: here.send("alice", "bob", LARGE))).decision is Decision.LOG_FULL
        assert (await here.send("eve", "carol")).decision is Decision.LOG_FULL


async def test_a_repetition_stays_accepted(nc: Client):
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        assert (await here.send("alice", "bob", LARGE, id="first")).ok
        assert (await fill(lambda: here.send("alice", "bob", LARGE))).decision is Decision.INBOX_FULL
        again = await here.send("alice", "bob", LARGE, id="first")
        assert (again.decision, again.duplicate) == (Decision.ALLOWED, True)


async def test_a_log_full_of_records_is_not_blamed_on_inboxes(nc: Client):
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        assert (await here.send("alice", "bob", LARGE)).ok
        filler = b"x" * 100_000
        while await used(nc) < LOG - 60_000:
            await publish(nc, subjects.audit_record("other", 1), filler[: LOG - 50_000 - await used(nc)], {})
        await here.service._room.look()
        assert not here.service._room.inboxes.over
        assert (await fill(lambda: here.send("alice", "bob", LARGE))).decision is Decision.LOG_FULL


async def test_workers_that_were_started_since_know_less_and_leave_half_of_what_is_left(nc: Client):
    policy = document(EVERYBODY, limits=Limits(log_bytes=2 * LOG))
    for part in (2, 4):
        async with serving(nc, policy) as here:
            assert (await fill(lambda here=here: here.send("alice", "bob", LARGE))).decision is (  # type: ignore[misc]
                Decision.INBOX_FULL
            )
            assert 2 * LOG - await used(nc) > 2 * LOG // part - OVERSHOOT


# -- delayed messages ---------------------------------------------------------------------------------------
async def delay(here: Serving, name: str, sender: str = "alice", body: object = LARGE) -> Verdict:
    fields = {headers.MSG_ID: name, headers.TARGET: "bob", headers.TYPE: "work", headers.DELAY: "600000"}
    return await here.call(sender, "delay", body, **fields)


async def test_one_sender_leaves_half_of_the_delayed_messages_room(nc: Client):
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        number = iter(range(10_000))
        refused = await fill(lambda: delay(here, f"m{next(number)}"))
        assert (refused.decision, refused.rule) == (Decision.DELAYED_FULL, "log_bytes")
        assert LOG // 2 < await used(nc, subjects.DELAYED_STREAM) < LOG // 2 + OVERSHOOT
        again = await delay(here, "m0")
        assert (again.ok, again.duplicate) == (True, True)
        for each in range(20):
            assert (await delay(here, f"c{each}", sender="carol")).ok
        cancel = await here.call("alice", "withdraw", **{headers.MSG_ID: "m0"})
        assert cancel.result["cancelled"]


async def test_once_some_are_cancelled_the_sender_may_delay_more(nc: Client):
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        number = iter(range(10_000))
        assert (await fill(lambda: delay(here, f"m{next(number)}"))).decision is Decision.DELAYED_FULL
        for each in range(20):
            await here.call("alice", "withdraw", **{headers.MSG_ID: f"m{each}"})
        async with asyncio.timeout(5):
            while not (await delay(here, f"m{next(number)}")).ok:
                await asyncio.sleep(0.05)


async def test_without_shares_one_sender_would_keep_all_others_out(
    nc: Client, monkeypatch: pytest.MonkeyPatch
):
    """The control."""
    monkeypatch.setattr("broker_policy.delayed.stream.most_for_one", lambda *_: None)
    async with serving(nc, document(EVERYBODY, limits=Limits(log_bytes=LOG))) as here:
        number = iter(range(10_000))
        assert (await fill(lambda: delay(here, f"m{next(number)}"))).decision is Decision.LOG_FULL
        assert (await delay(here, "c", sender="carol")).decision is Decision.LOG_FULL
