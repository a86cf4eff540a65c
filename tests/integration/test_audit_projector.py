"""From the log into the chain, on real servers: exactly once, in order, and nothing unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from redis.asyncio import Redis

from broker_policy.audit import lease as lease_module
from broker_policy.audit import log
from broker_policy.audit.entry import Entry, unranged
from broker_policy.audit.findings import FindingKind
from broker_policy.audit.lease import Lease, Leases
from broker_policy.audit.log import Page
from broker_policy.audit.memory import Memory
from broker_policy.audit.probe import is_probe
from broker_policy.audit.projector import Projector
from broker_policy.audit.query import Question, ask
from broker_policy.audit.recall import Recall
from broker_policy.audit.record import DecisionLine, Outcome, RecordKind, Way
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken
from broker_policy.audit.verify import verify
from broker_policy.dedup import dedup_id, redrive_dedup_id
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import Ack, api, delete_message, direct_get, get_next, next_sequence, publish
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.audit_log import KEY, NAMESPACE, LogWriter, connect, handle, line, make_streams


@pytest.fixture(scope="module")
def certificate(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> CertificatePaths:
    worker = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.POLICY, "worker")
    return ca.issue(worker, tmp_path_factory.mktemp("certificate"))


@pytest.fixture
async def nc(nats_server: NatsServer, certificate: CertificatePaths) -> AsyncIterator[Client]:
    client = await connect(nats_server, certificate)
    await make_streams(client)
    yield client
    await client.close()


@pytest.fixture
def projector(nc: Client, redis: Redis) -> Projector:
    return Projector(NAMESPACE, nc, redis, KEY, interval=0.02)


async def project(projector: Projector) -> None:
    while await projector.project_once():
        pass


async def kinds(redis: Redis) -> list[str]:
    """What the chain holds, in order."""
    return [
        entry["k"]
        + (f":{entry['e']}" if entry["k"] in "wa" else f":{entry['o']}" if entry["k"] == "o" else "")
        async for stored in Store(redis, NAMESPACE).entries()
        if (entry := stored.entry())
    ]


async def outcomes(redis: Redis, **question: str) -> list[str]:
    """The outcomes of the decisions asked for, oldest first."""
    return [answer.outcome for answer in reversed(await ask(Store(redis, NAMESPACE), Question(**question)))]


async def until(condition: Callable[[], Awaitable[bool]], timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)


async def projected(nc: Client, redis: Redis) -> None:
    """Return when all that is in the log now is in the chain."""
    last = (await api(nc, "STREAM.INFO.INBOX", {}))["state"]["last_seq"]

    async def reached() -> bool:
        return (await Store(redis, NAMESPACE).head()).sequence >= last

    await until(reached)


async def intact(redis: Redis) -> None:
    report = await verify(Store(redis, NAMESPACE), None, [])
    assert report.findings == []


# -- the plain way ---------------------------------------------------------------------------------------
async def test_decisions_become_entries_with_indexes(nc, redis, projector):
    writer = await LogWriter(nc).open()
    lines = [line(Way.BATCH), line(Way.NONE, rule="blocked_targets"), line(Way.BATCH, target="bob")]
    sequence = await writer.batch(lines)
    await project(projector)
    assert await kinds(redis) == ["w:open", "d", "d", "d"]
    store = Store(redis, NAMESPACE)
    [found] = await ask(store, Question(message_id=lines[2].message_id))
    assert found.entry["q"] == sequence + 2  # the second message of the batch
    assert found.outcome == Outcome.COMMITTED
    assert found.row()["sender"] == "alice"
    [refused] = await ask(store, Question(violation="blocked_targets"))
    assert (refused.outcome, refused.entry["id"]) == (Outcome.REFUSED, lines[1].message_id)
    assert len(await ask(store, Question(sender="alice", decision="ALLOWED"))) == 2
    assert await ask(store, Question(sender="alice", target="carol")) == []
    assert (await store.head()).sequence == sequence
    await intact(redis)


async def test_newest_first_and_limited(nc, redis, projector):
    writer = await LogWriter(nc).open()
    lines = [line() for _ in range(300)]
    await writer.batch(lines[:150])
    await writer.batch(lines[150:])
    await project(projector)
    found = await ask(Store(redis, NAMESPACE), Question(sender="alice"), limit=250)
    assert [answer.entry["id"] for answer in found] == [each.message_id for each in reversed(lines[50:])]
    everything = await ask(Store(redis, NAMESPACE), Question(), limit=1000)
    assert len(everything) == 300


async def test_single_records_that_keep_coming_are_projected_together(nc, redis, monkeypatch):
    """Each page costs requests to both servers, and takes the processor from those who wait for an answer."""
    projector, pages = Projector(NAMESPACE, nc, redis, KEY, interval=0.25), list[int]()
    read = log.read

    async def counted(*arguments: Any, **options: Any) -> log.Page:
        page = await read(*arguments, **options)
        if options["most"] > 1:  # not how the last record of a page ended
            pages.append(len(page.messages))
        return page

    monkeypatch.setattr(log, "read", counted)
    writer = await LogWriter(nc).open()
    running = asyncio.create_task(projector.run())
    try:
        written, begun = 0, time.monotonic()
        while written < 150 or time.monotonic() - begun < 1.5:
            await writer.batch([line(Way.BATCH)])
            written += 1
        await writer.write(RecordKind.MARK)
        await projected(nc, redis)
        looks = 4 + 7 * (time.monotonic() - begun)  # its own, four a second, and those of settling
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert looks < written / 2, "too slow to show anything"
    assert sum(1 for found in pages if found) < looks, pages
    await intact(redis)


async def test_projected_records_leave_the_log_and_messages_stay(nc, redis, projector):
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH) for _ in range(5)])
    await project(projector)
    assert await projector.remove_projected() == 1
    info = await api(nc, "STREAM.INFO.INBOX", {"subjects_filter": ">"})
    assert info["state"]["subjects"] == {"mas.inbox.bob": 5, f"mas.audit.{writer.name}.2": 1}


async def test_a_writers_last_record_is_known_after_a_restart_of_the_server(
    nc, redis, projector, nats_server, certificate
):
    """Its worker may still be waiting for an answer, and must find out that it was stored."""
    writer = await LogWriter(nc).open()
    sequence = await writer.batch([line(Way.BATCH)])
    await project(projector)
    await projector.remove_projected()
    nats_server.kill()
    await nats_server.start()
    again = await connect(nats_server, certificate)
    fields = {"Nats-Msg-Id": f"{writer.name}.2"}
    assert await publish(again, f"mas.audit.{writer.name}.2", b"{}", fields) == Ack(sequence, duplicate=True)
    await again.close()


async def test_what_an_earlier_projector_left_is_removed_by_the_next(nc, redis, projector):
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH)])
    await project(projector)
    successor = Projector(NAMESPACE, nc, redis, KEY)
    assert await successor.remove_projected() == 1
    assert await successor.remove_projected() == 0


async def test_lag(nc, redis, projector):
    writer = await LogWriter(nc).open()
    assert (await projector.lag()).records == 1
    for _ in range(3):
        await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    lag = await projector.lag()
    assert lag.records == 4
    assert 0 <= lag.age < 10
    await project(projector)
    assert await projector.lag() == type(lag)(0, 0.0)


async def test_run_projects_and_removes_by_itself(nc, redis, projector):
    running = asyncio.create_task(projector.run())
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH) for _ in range(3)])
    await handle(nc, "bob", 3)

    async def done() -> bool:
        handled = await outcomes(redis, sender="alice") == ["h"] * 3
        return handled and (await api(nc, "STREAM.INFO.INBOX", {}))["state"]["messages"] == 1

    await until(done)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert await redis.get(projector.store.layout.lease) is None  # given up
    await intact(redis)


@pytest.mark.parametrize("held_before", [True, False])
async def test_a_projector_ended_while_it_asks_leaves_no_lease(
    nc, redis, projector, monkeypatch, *, held_before: bool
):
    """Redis has given it the lease, and the answer never comes."""
    lease, asked = projector._lease, asyncio.Event()
    ask_redis = lease._hold
    if held_before:
        assert await lease.hold()
        monkeypatch.setattr(lease_module, "_RENEW_AFTER", 0.0)

    async def unanswered(**given: Any) -> None:
        await ask_redis(**given)
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(lease, "_hold", unanswered)
    running = asyncio.create_task(projector.run())
    await asked.wait()
    assert await redis.get(projector.store.layout.lease) is not None
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert await redis.get(projector.store.layout.lease) is None


async def test_who_asked_in_vain_leaves_the_lease_to_its_holder(redis):
    first, second = Lease(Leases(redis), "lease", "w1"), Lease(Leases(redis), "lease", "w2")
    assert await first.hold()
    assert not await second.hold()
    await second.give_up()
    assert not await second.hold()
    await first.give_up()
    assert await second.hold()


# -- outcomes --------------------------------------------------------------------------------------------
async def test_settled_outcomes(nc, redis, projector):
    writer = await LogWriter(nc).open()
    lines = [line(Way.LONE), line(Way.LONE), line(Way.ACT, op="reply"), line(Way.ACT, op="state")]
    await writer.write(RecordKind.DECISIONS, decisions=tuple(lines))
    sequence = await writer.deliver(lines[0])
    await project(projector)
    assert await outcomes(redis, sender="alice") == [" "] * 4
    await writer.settle(
        (2, 0, Outcome.COMMITTED, sequence),
        (2, 1, Outcome.NOT_COMMITTED, 0),
        (2, 2, Outcome.APPLIED, 0),
        (2, 3, Outcome.FAILED, 0),
    )
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "n", "a", "f"]
    await handle(nc, "bob", 1)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h", "n", "a", "f"]
    assert not await redis.keys(f"{projector.store.layout.prefix}open:*")
    assert not await redis.keys(f"{projector.store.layout.prefix}pending:*")
    await intact(redis)


async def test_two_decisions_about_one_message_are_both_followed(nc, redis, projector):
    """Two workers released the same delayed message: the second found it stored, and both say where."""
    writers = [await LogWriter(nc).open(), await LogWriter(nc).open()]
    released = line(Way.LONE, op="release")
    for writer in writers:
        await writer.write(RecordKind.DECISIONS, decisions=(released,))
    sequence = await writers[0].deliver(released)
    for writer in writers:
        await writer.settle((2, 0, Outcome.COMMITTED, sequence))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "c"]
    await handle(nc, "bob", 1)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h", "h"]


@pytest.mark.parametrize(
    "steps",
    [
        "first second report",
        "first project second report",
        "first second project report",
        "first project second project report",
        "report first second",
        "report project first second",
        "first report second",
    ],
)
async def test_a_report_is_about_both_decisions_about_one_message(nc, redis, projector, steps):
    """As above, and the message used up its attempts; the projector looks at the log in between or not."""
    writers = {"first": await LogWriter(nc).open(), "second": await LogWriter(nc).open()}
    released = line(Way.LONE, op="release")
    for writer in writers.values():
        await writer.write(RecordKind.DECISIONS, decisions=(released,))
    sequence = await writers["first"].deliver(released)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream="INBOX")
    await pull.fetch(1, timeout=5)
    await project(projector)
    for step in steps.split():
        if step == "project":
            await project(projector)
        elif step == "report":
            await writers["first"].report("bob", sequence, Outcome.REDELIVERED)
            await writers["first"].report("bob", sequence, Outcome.DEAD, attempt=2)
        else:
            await writers[step].settle((2, 0, Outcome.COMMITTED, sequence))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["d", "d"]
    await delete_message(nc, "INBOX", sequence)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["d", "d"]
    assert not await redis.keys(f"{projector.store.layout.prefix}open:*")
    assert not await redis.exists(projector.store.layout.early)
    await intact(redis)


async def test_accepted_without_effect_is_not_refused(nc, redis, projector):
    """A repetition that the worker answers by itself, and a connection."""
    writer = await LogWriter(nc).open()
    repeated = line(Way.NONE, decision="ALLOWED", rule="duplicate")
    connected = line(Way.NONE, decision="ALLOWED", rule="certificate", op="connect")
    await writer.write(RecordKind.DECISIONS, decisions=(repeated, connected))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["u", "a"]
    assert await ask(Store(redis, NAMESPACE), Question(violation="duplicate")) == []


async def test_reports(nc, redis, projector):
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH), line(Way.BATCH), line(Way.BATCH)])
    await project(projector)
    await writer.report("bob", record + 1, Outcome.REDELIVERED)
    await writer.report("bob", record + 1, Outcome.REDELIVERED, attempt=2)
    await writer.report("bob", record + 2, Outcome.EXPIRED)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["v", "x", "c"]
    await writer.report("bob", record + 1, Outcome.DEAD, attempt=3)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["d", "x", "c"]
    await intact(redis)


async def test_a_report_may_come_before_the_settlement(nc, redis, projector):
    """A lone message is delivered at once, and fails, while its settlement waits for the next record."""
    writer, other = await LogWriter(nc).open(), await LogWriter(nc).open()
    lines = [line(Way.LONE), line(Way.LONE)]
    await writer.write(RecordKind.DECISIONS, decisions=tuple(lines))
    sequences = [await writer.deliver(each, place) for place, each in enumerate(lines)]
    await other.report("bob", sequences[0], Outcome.REDELIVERED)
    await other.report("bob", sequences[1], Outcome.DEAD)
    await project(projector)
    assert await outcomes(redis, sender="alice") == [" ", " "]
    await writer.settle(*((2, place, Outcome.COMMITTED, s) for place, s in enumerate(sequences)))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["v", "d"]
    assert not await redis.exists(projector.store.layout.early)
    await intact(redis)


async def test_what_is_settled_after_the_look_and_waits_before_it_is_not_handled(nc, redis, projector):
    """A lone message whose place was not known at the look: what came after it was handled before it."""
    writer, other = await LogWriter(nc).open(), await LogWriter(nc).open()
    lone = line(Way.LONE, sender="dora")
    await writer.write(RecordKind.DECISIONS, decisions=(lone,))
    waiting = await writer.deliver(lone)
    await other.batch([line(Way.BATCH) for _ in range(3)])
    await project(projector)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream="INBOX")
    first, *later = await pull.fetch(4, timeout=5)
    assert first.metadata.sequence.stream == waiting
    for message in later:
        await message.ack_sync()
    await writer.settle((2, 0, Outcome.COMMITTED, waiting))  # projected by settling only
    assert await projector.settle_once() == 3
    assert await outcomes(redis, sender="alice") == ["h"] * 3
    assert await outcomes(redis, sender="dora") == ["c"]
    await writer.report("bob", waiting, Outcome.DEAD)
    await first.ack_sync()
    await projector.settle_once()
    assert await outcomes(redis, sender="dora") == ["d"]
    assert not await redis.exists(projector.store.layout.early)
    await intact(redis)


async def with_a_place_taken(
    torn: LogWriter, lines: list[DecisionLine], lone: LogWriter, taker: DecisionLine
) -> int:
    """A torn batch of two, whose second has the place of another message; where its record lies."""
    await lone.write(RecordKind.DECISIONS, decisions=(taker,))
    record = await torn.write(RecordKind.DECISIONS, decisions=tuple(lines))
    await torn.deliver(lines[0], 0)
    assert await lone.deliver(taker) == record + 2
    await lone.settle((2, 0, Outcome.COMMITTED, record + 2))
    return record


async def test_what_turns_out_to_lie_elsewhere_after_the_look_is_not_handled(nc, redis, projector):
    """The place that it has in its batch went to another, whose message is gone from there."""
    torn, lone = await LogWriter(nc).open(), await LogWriter(nc).open()
    lines = [line(Way.BATCH, sender="dora") for _ in range(2)]
    taker = line(Way.LONE, sender="carol")
    record = await with_a_place_taken(torn, lines, lone, taker)
    await project(projector)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream="INBOX")
    _, taken = await pull.fetch(2, timeout=5)
    await taken.ack_sync()  # behind one that waits: found by a search
    moved = await torn.deliver(lines[1], 1)
    await torn.settle((2, 0, Outcome.COMMITTED, record + 1), (2, 1, Outcome.COMMITTED, moved))
    assert await projector.settle_once() == 1
    assert await outcomes(redis, sender="carol") == ["h"]
    assert await outcomes(redis, sender="dora") == ["c", "c"]
    assert await redis.zcard(projector.store.layout.open("bob")) == 2


@pytest.mark.parametrize("projected", [False, True], ids=["at once", "projected before"])
async def test_a_batch_torn_by_the_server_is_settled_singly(nc, redis, projector, projected):
    """Of four messages one was stored; one came later, one was refused, one was a repetition of another."""
    writer, other = await LogWriter(nc).open(), await LogWriter(nc).open()
    lines = [line(Way.BATCH) for _ in range(4)]
    record = await writer.write(RecordKind.DECISIONS, decisions=tuple(lines))
    first = await writer.deliver(lines[0], 0)
    assert first == record + 1
    await other.write(RecordKind.MARK)  # lies where a message of the batch would
    if projected:
        await project(projector)
        assert await outcomes(redis, sender="alice") == ["c", " ", " ", " "]
    moved = await writer.deliver(lines[1], 1)
    await writer.settle(
        (2, 0, Outcome.COMMITTED, first),
        (2, 1, Outcome.COMMITTED, moved),
        (2, 2, Outcome.NOT_COMMITTED, 0),
        (2, 3, Outcome.DUPLICATE, 0),
    )
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "c", "n", "u"]
    await other.report("bob", moved, Outcome.DEAD)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "d", "n", "u"]
    await handle(nc, "bob", 1)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h", "d", "n", "u"]
    assert not await redis.keys(f"{projector.store.layout.prefix}open:*")
    assert not await redis.exists(projector.store.layout.early)
    await intact(redis)


@pytest.mark.parametrize("projected", ["nothing", "the first settlement", "both settlements"])
async def test_a_place_that_a_torn_batch_lost_to_another_message(nc, redis, projector, projected):
    """Two decisions are followed at one place until the batch is settled; a report is about the other one."""
    torn, lone, other = [await LogWriter(nc).open() for _ in range(3)]
    lines = [line(Way.BATCH, sender="alice") for _ in range(2)]
    taker = line(Way.LONE, sender="carol")
    record = await with_a_place_taken(torn, lines, lone, taker)
    if projected != "nothing":
        await project(projector)
    await torn.settle((2, 0, Outcome.COMMITTED, record + 1), (2, 1, Outcome.NOT_COMMITTED, 0))
    if projected == "both settlements":
        await project(projector)
    await other.report("bob", record + 2, Outcome.DEAD)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "n"]
    assert await outcomes(redis, sender="carol") == ["d"]
    await intact(redis)


async def test_a_torn_batchs_message_that_was_reported_first_is_not_followed(nc, redis, projector):
    writer, other = await LogWriter(nc).open(), await LogWriter(nc).open()
    lines = [line(Way.BATCH), line(Way.BATCH)]
    await writer.write(RecordKind.DECISIONS, decisions=tuple(lines))
    first = await writer.deliver(lines[0], 0)
    await project(projector)  # the second would lie behind the first
    await other.write(RecordKind.MARK)
    moved = await writer.deliver(lines[1], 1)
    await other.report("bob", moved, Outcome.DEAD)
    await project(projector)
    await writer.settle((2, 0, Outcome.COMMITTED, first), (2, 1, Outcome.COMMITTED, moved))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "d"]
    assert await redis.zcard(projector.store.layout.open("bob")) == 1
    await intact(redis)


async def test_a_message_whose_attempts_are_used_up_is_not_handled(nc, redis, projector):
    """The consumer's ack floor passes it, but it waits in the stream for its dead letter."""
    consumer = {"durable_name": "carol", "filter_subject": "mas.inbox.carol", "ack_policy": "explicit"}
    request = {"stream_name": "INBOX", "config": {**consumer, "max_deliver": 1}}
    await api(nc, "CONSUMER.DURABLE.CREATE.INBOX.carol", request)
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH, target="carol"), line(Way.BATCH, target="carol")])
    pull = await nc.jetstream().pull_subscribe_bind(consumer="carol", stream="INBOX")
    first, second = await pull.fetch(2, timeout=5)
    await first.nak()
    await second.ack_sync()
    await project(projector)
    await projector.settle_once()
    info = await api(nc, "CONSUMER.INFO.INBOX.carol", {})
    assert info["delivered"]["stream_seq"] == record + 2
    assert await outcomes(redis, sender="alice") == ["c", "h"]


async def behind_stuck_ones(nc: Client, kept: set[int]) -> list[str]:
    """Of 200 messages 150 are delivered and all but ``kept`` of these handled: their outcomes."""
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH) for _ in range(200)])
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream="INBOX")
    messages: list[Msg] = []
    while len(messages) < 150:
        messages += await pull.fetch(150 - len(messages), timeout=5)
    for place, message in enumerate(messages):
        if place not in kept:
            await message.ack_sync()
    return ["c" if place in kept or place >= 150 else "h" for place in range(200)]


def settled_in(entries: list[Entry]) -> list[int]:
    """The decisions whose outcomes these entries tell, as often as they do."""
    return [index for each in entries if each["k"] == "o" for index in unranged(each["x"])]


async def all_outcomes(redis: Redis) -> list[str]:
    found = await ask(Store(redis, NAMESPACE), Question(sender="alice"), limit=1000)
    return [answer.outcome for answer in reversed(found)]


async def test_handled_messages_behind_one_that_is_stuck(nc, redis, projector, monkeypatch):
    expected = await behind_stuck_ones(nc, {0, 70, 71, 149})
    await project(projector)
    asked: list[int] = []

    async def counted(nc: Client, stream: str, sequence: int, subject: str) -> int:
        asked.append(sequence)
        return await next_sequence(nc, stream, sequence, subject)

    monkeypatch.setattr("broker_policy.audit.inbox_view.next_sequence", counted)
    await projector.settle_once()
    assert await all_outcomes(redis) == expected
    assert len(asked) <= 4  # a stretch is asked for at once, at most once for each page of the inbox
    await intact(redis)


async def test_what_only_lacks_in_a_copy_of_the_inbox_is_not_called_handled(
    nc, redis, projector, monkeypatch
):
    """Behind a message that is stuck, too: who leads the log is asked for every stretch that lacks."""
    expected = await behind_stuck_ones(nc, {0, 70, 71, 149})
    await project(projector)
    read = log.read

    async def lacking(nc: Client, first: int, pattern: str = subjects.AUDIT_SUBJECTS, **options: int) -> Page:
        page = await read(nc, first, pattern, **options)
        return page if pattern == subjects.AUDIT_SUBJECTS else Page([], 0)

    with monkeypatch.context() as patched:
        patched.setattr(log, "read", lacking)
        await projector.settle_once()
    known = await all_outcomes(redis)
    # What is handled before the first that is not is known by the same question; the rest is found later.
    assert known == [*expected[:70], *(["c"] * 130)]
    monkeypatch.setattr("broker_policy.audit.handled.SEARCH_EVERY", 0.0)
    await projector.settle_once()
    assert await all_outcomes(redis) == expected


async def test_a_log_that_ends_before_a_message_does_not_say_that_it_is_gone(nc):
    """Its end is the first of which nothing is known."""
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH) for _ in range(3)])
    inbox = subjects.inbox("bob")
    assert await next_sequence(nc, "INBOX", record, inbox) == record + 1
    await handle(nc, "bob", 3)
    assert await next_sequence(nc, "INBOX", record + 1, inbox) == record + 4
    assert await next_sequence(nc, "INBOX", record + 9, inbox) == record + 4


async def test_who_has_not_come_so_far_does_not_say_that_a_message_is_gone(nc, monkeypatch):
    """A node that leads by now may not have all of the log at the first question, and have it at the next."""
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH) for _ in range(3)])
    asked: list[int] = []

    async def late(nc: Client, stream: str, sequence: int, subject: str, **options: float) -> object:
        asked.append(sequence)
        return None if len(asked) == 1 else await get_next(nc, stream, sequence, subject)

    monkeypatch.setattr("broker_policy.jetstream.get_next", late)
    assert await next_sequence(nc, "INBOX", record, subjects.inbox("bob")) == record + 1
    assert len(asked) == 2


async def test_a_message_removed_unseen_is_not_called_handled(nc, redis, projector, monkeypatch, caplog):
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH)])
    await project(projector)
    await delete_message(nc, "INBOX", record + 1)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["c"]  # the server's word may be late
    monkeypatch.setattr("broker_policy.audit.handled.UNDELIVERED_GRACE", 0.0)
    monkeypatch.setattr("broker_policy.audit.handled.SEARCH_EVERY", 0.0)
    assert "are gone" not in caplog.text
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["?"]
    assert "1 messages to bob in default are gone, and the server knows of no delivery" in caplog.text
    await intact(redis)


async def test_a_message_removed_unseen_is_waited_for_over_looks_that_do_not_search(
    nc, redis, projector, monkeypatch
):
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH)])
    await project(projector)
    await delete_message(nc, "INBOX", record + 1)
    await projector.settle_once()  # searches
    await projector.settle_once()  # does not, within SEARCH_EVERY: what was found is not forgotten
    assert await outcomes(redis, sender="alice") == ["c"]
    monkeypatch.setattr("broker_policy.audit.handled.SEARCH_EVERY", 0.0)
    now = time.monotonic() + 31
    monkeypatch.setattr("broker_policy.audit.handled.time.monotonic", lambda: now)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["?"]


async def test_nothing_is_called_handled_by_a_copy_of_the_log_that_is_behind(
    nc, redis, projector, monkeypatch
):
    """The message is gone from the inbox, and the record that says why is not on the node that was asked."""
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH)])
    await project(projector)
    pull = await nc.jetstream().pull_subscribe_bind(consumer="bob", stream="INBOX")
    await pull.fetch(1, timeout=5)
    report = await writer.report("bob", record + 1, Outcome.DEAD)
    await delete_message(nc, "INBOX", record + 1)
    read = log.read

    async def behind(nc: Client, first: int, pattern: str = subjects.AUDIT_SUBJECTS, **options: int) -> Page:
        page = await read(nc, first, pattern, **options)
        return Page([each for each in page.messages if each.sequence < report], 0)

    with monkeypatch.context() as patched:
        patched.setattr(log, "read", behind)
        assert await projector.settle_once() == 0
    assert await outcomes(redis, sender="alice") == ["c"]
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["d"]


@pytest.mark.parametrize("reads", [1, 2])
async def test_a_copy_of_the_log_that_catches_up_meanwhile_is_asked_again(
    nc, redis, projector, monkeypatch, reads: int
):
    """One message was handled; how the other ended is known there only after ``reads`` times of asking."""
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH), line(Way.BATCH)])
    await project(projector)
    await handle(nc, "bob", 2)
    report = await writer.report("bob", record + 2, Outcome.DEAD)
    read, asked = log.read, 0

    async def late(nc: Client, first: int, pattern: str = subjects.AUDIT_SUBJECTS, **options: int) -> Page:
        nonlocal asked
        page = await read(nc, first, pattern, **options)
        asked += 1
        return page if asked > reads else Page([each for each in page.messages if each.sequence < report], 0)

    monkeypatch.setattr(log, "read", late)
    assert await projector.settle_once() == 1
    assert await outcomes(redis, sender="alice") == ["h", "d"]


# -- dead workers ----------------------------------------------------------------------------------------
@pytest.fixture
def impatient(nc: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Projector:
    """A projector for which every writer is dead at once."""
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    return Projector(NAMESPACE, nc, redis, KEY)


async def test_the_decisions_of_a_dead_worker_get_outcomes(nc, redis, impatient):
    writer = await LogWriter(nc).open()
    lines = [line(Way.LONE), line(Way.LONE), line(Way.LONE), line(Way.ACT, op="reply")]
    await writer.write(RecordKind.DECISIONS, decisions=tuple(lines))
    waiting = await writer.deliver(lines[1], 1)
    await writer.deliver(lines[0], 0)
    await handle(nc, "bob", 1)
    assert waiting
    await project(impatient)
    await impatient.settle_once()  # lines[1] was handled, lines[0] waits, lines[2] never left
    assert await outcomes(redis, sender="alice") == ["c", "c", "n", "?"]
    assert (await kinds(redis)).count("w:lost") == 1
    await impatient.settle_once()
    assert await outcomes(redis, sender="alice") == ["c", "h", "n", "?"]
    await project(impatient)
    await intact(redis)


@pytest.mark.parametrize("behind", ["nothing", "a record", "a page of records"])
async def test_what_a_torn_batch_of_a_dead_worker_lacks_was_not_committed(
    nc, redis, monkeypatch, impatient, behind
):
    """Two of four messages reached the disk before the power cut. The server has started anew since."""
    started = time.time()

    async def remember() -> Memory:
        return Memory("nats", started)

    projector = Projector(NAMESPACE, nc, redis, KEY, remember=remember)
    dead, alive = await LogWriter(nc).open(), await LogWriter(nc).open()
    early = int(started * 1000) - 5000
    lines = [line(Way.BATCH, time=early, message_id=f"m{number}") for number in range(4)]
    await dead.write(RecordKind.DECISIONS, decisions=tuple(lines))
    for position, each in enumerate(lines[:2]):
        await dead.deliver(each, position)
    if behind != "nothing":
        await alive.write(RecordKind.MARK)
        await alive.write(RecordKind.MARK)
    if behind == "a page of records":
        monkeypatch.setattr("broker_policy.audit.projector.RECORDS", 1)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "c", " ", " "]
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["c", "c", "n", "n"]
    await handle(nc, "bob", 2)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h", "h", "n", "n"]
    await project(projector)
    await intact(redis)


async def test_what_was_torn_before_an_earlier_start_of_the_server_is_not_known(nc, redis, impatient):
    """The projector was away for two starts: what was sent again between them, the server has forgotten."""
    dead, alive = await LogWriter(nc).open(), await LogWriter(nc).open()
    lines = [line(Way.BATCH, message_id=f"m{number}") for number in range(2)]
    await dead.write(RecordKind.DECISIONS, decisions=tuple(lines))
    await dead.deliver(lines[0], 0)
    await alive.write(RecordKind.MARK)
    started = time.time()

    async def remember() -> Memory:
        return Memory("nats", started)

    projector = Projector(NAMESPACE, nc, redis, KEY, remember=remember)
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["c", "?"]
    await project(projector)
    await intact(redis)


async def test_a_whole_batch_at_the_end_of_the_log_is_committed(nc, redis, projector):
    """Also when all of it was removed already."""
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH), line(), line(Way.BATCH)])
    await handle(nc, "bob", 2)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["c", "r", "c"]


async def test_a_repetition_is_told_from_the_decision_that_was_stored(nc, redis, impatient):
    """The worker died before its publish; the sender repeated, and another worker stored the message."""
    dead, alive = await LogWriter(nc).open(), await LogWriter(nc).open()
    [first, handled] = lines = [line(Way.LONE), line(Way.LONE)]
    await dead.write(RecordKind.DECISIONS, decisions=tuple(lines))
    await alive.batch([line(Way.BATCH, message_id=handled.message_id)])
    await handle(nc, "bob", 1)
    await project(impatient)
    await impatient.settle_once()
    assert await outcomes(redis, message_id=handled.message_id) == ["u", "h"]
    assert await outcomes(redis, message_id=first.message_id) == ["n"]


@pytest.mark.parametrize("names", [("wa0i", "wb0i"), ("wb0i", "wa0i")], ids=["in order", "the later first"])
async def test_a_message_that_is_gone_belongs_to_a_decision_before_it(nc, redis, impatient, names):
    """Its worker died, the sender repeated, and the worker that was asked then died too."""
    first, second = [await LogWriter(nc, name).open() for name in names]
    stored = line(Way.LONE)
    await first.write(RecordKind.DECISIONS, decisions=(stored,))
    await first.deliver(stored)
    await handle(nc, "bob", 1)
    await second.write(RecordKind.DECISIONS, decisions=(line(Way.LONE, message_id=stored.message_id),))
    await project(impatient)
    await impatient.settle_once()
    await project(impatient)
    await impatient.settle_once()
    assert await outcomes(redis, message_id=stored.message_id) == ["h", "u"]
    await intact(redis)


@pytest.mark.parametrize("knows", [True, False], ids=["knows of the restart", "control: does not"])
async def test_a_second_copy_of_an_id_that_was_forgotten(
    nc, nats_server, certificate, redis, monkeypatch, knows
):
    """The first was handled and told so; the worker of the second died, and that is gone as well."""
    monkeypatch.setattr("broker_policy.audit.outcomes.CLOCKS", 0.0)
    first = await LogWriter(nc).open()
    stored = line(Way.LONE)
    await first.write(RecordKind.DECISIONS, decisions=(stored,))
    number, place = first.number, await first.deliver(stored)
    await first.settle((number, 0, Outcome.COMMITTED, place))
    await handle(nc, "bob", 1)
    projector = Projector(NAMESPACE, nc, redis, KEY)
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, message_id=stored.message_id) == ["h"]
    started = time.time()
    nats_server.kill()
    await nats_server.start()
    again = await connect(nats_server, certificate)

    async def remember() -> Memory:
        return Memory("nats", started if knows else 0.0)

    projector = Projector(NAMESPACE, again, redis, KEY, remember=remember)
    second = await LogWriter(again).open()
    later = line(Way.LONE, message_id=stored.message_id, time=int((time.time() + 1) * 1000))
    await second.write(RecordKind.DECISIONS, decisions=(later,))
    await second.deliver(later)
    await handle(again, "bob", 1)
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, message_id=stored.message_id) == ["h", "?" if knows else "u"]
    await again.close()


@pytest.mark.parametrize("names", [("wa0i", "wb0i"), ("wb0i", "wa0i")], ids=["in order", "the later first"])
async def test_a_message_that_is_gone_and_may_be_of_two_decisions(nc, redis, impatient, names):
    """Both are before it, and both workers died: nobody knows any more which of them it named."""
    first, second = [await LogWriter(nc, name).open() for name in names]
    stored = line(Way.LONE)
    await first.write(RecordKind.DECISIONS, decisions=(stored,))
    await second.write(RecordKind.DECISIONS, decisions=(line(Way.LONE, message_id=stored.message_id),))
    await first.deliver(stored)
    await handle(nc, "bob", 1)
    await project(impatient)
    await impatient.settle_once()
    await project(impatient)
    await impatient.settle_once()
    assert await outcomes(redis, message_id=stored.message_id) == ["?", "?"]
    await intact(redis)


@pytest.mark.parametrize("knows", [True, False], ids=["knows of the restart", "control: does not"])
async def test_an_id_that_the_server_has_forgotten_says_nothing(
    nc, nats_server, certificate, redis, monkeypatch, knows
):
    """The worker died, its message was handled, nats-server started anew: nobody knows of the id any more."""
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    monkeypatch.setattr("broker_policy.audit.outcomes.CLOCKS", 0.0)
    writer = await LogWriter(nc).open()
    handled = line(Way.LONE)
    await writer.write(RecordKind.DECISIONS, decisions=(handled,))
    await writer.deliver(handled)
    await handle(nc, "bob", 1)
    nats_server.kill()
    started = time.time()
    await nats_server.start()
    again = await connect(nats_server, certificate)

    async def remember() -> Memory:
        return Memory("nats", started if knows else 0.0)

    projector = Projector(NAMESPACE, again, redis, KEY, remember=remember)
    later = await LogWriter(again).open()
    never_sent = line(Way.LONE, time=int((time.time() + 1) * 1000))
    await later.write(RecordKind.DECISIONS, decisions=(never_sent,))
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, message_id=handled.message_id) == ["?" if knows else "n"]
    assert await outcomes(redis, message_id=never_sent.message_id) == ["n"]
    await project(projector)
    await intact(redis)
    await again.close()


@pytest.mark.parametrize("knows", [True, False], ids=["knows of the restart", "control: does not"])
async def test_nor_does_one_that_was_stored_again_since(
    nc, nats_server, certificate, redis, monkeypatch, knows
):
    """As above, and the sender, who had no answer, repeated: handled twice, under two decisions."""
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    monkeypatch.setattr("broker_policy.audit.outcomes.CLOCKS", 0.0)
    writer = await LogWriter(nc).open()
    first = line(Way.LONE)
    await writer.write(RecordKind.DECISIONS, decisions=(first,))
    await writer.deliver(first)
    await handle(nc, "bob", 1)
    nats_server.kill()
    started = time.time()
    await nats_server.start()
    again = await connect(nats_server, certificate)
    await (await LogWriter(again).open()).batch([line(Way.BATCH, message_id=first.message_id)])

    async def remember() -> Memory:
        return Memory("nats", started if knows else 0.0)

    projector = Projector(NAMESPACE, again, redis, KEY, remember=remember)
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, message_id=first.message_id) == ["?" if knows else "u", "c"]
    await again.close()


@pytest.mark.parametrize("now", ["another leads", "the window is over"])
async def test_nor_does_one_asked_of_another_server_or_too_late(nc, redis, monkeypatch, now):
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    leaders = iter(("n1", "n2") if now == "another leads" else ("n1", "n1"))

    async def remember() -> Memory:
        return Memory(next(leaders), 0.0)

    ahead = 0.0 if now == "another leads" else 601.0
    projector = Projector(NAMESPACE, nc, redis, KEY, remember=remember, clock=lambda: time.time() + ahead)
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(Way.LONE),))
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["?"]


async def test_a_probed_id_can_be_told_from_a_stored_message(nc, redis, impatient):
    writer = await LogWriter(nc).open()
    lost, stored = line(Way.LONE), line(Way.LONE)
    await writer.write(RecordKind.DECISIONS, decisions=(lost, stored))
    await writer.deliver(stored, 1)
    await project(impatient)
    await impatient.settle_once()
    await project(impatient)
    await impatient.remove_projected()  # probes stay
    for each, probed in ((lost, True), (stored, False)):
        fields = {"Nats-Msg-Id": dedup_id(NAMESPACE, each.sender, each.message_id)}
        ack = await publish(nc, subjects.inbox("bob"), b"{}", fields)
        assert ack.duplicate
        found = await direct_get(nc, subjects.INBOX_STREAM, ack.sequence)
        assert is_probe(found.subject) is probed
    await handle(nc, "bob", 1)
    assert await direct_get(nc, subjects.INBOX_STREAM, ack.sequence) is None
    # Another projector comes to the same answer from the probe that is there.
    assert await outcomes(redis, message_id=lost.message_id) == ["n"]


async def test_a_redrive_of_a_dead_worker_is_told_from_the_senders_own_message(nc, redis, impatient):
    """Each dead letter has a dedup id of its own; a probe for it must not take the sender's."""
    writer = await LogWriter(nc).open()
    sent = line(Way.LONE)
    stored, lost = (sent._replace(op="redrive", by="olga", letter=letter) for letter in ("7", "8"))
    await writer.write(RecordKind.DECISIONS, decisions=(stored, lost))
    fields = writer.fields(stored, writer.number, 0)
    fields["Nats-Msg-Id"] = redrive_dedup_id(NAMESPACE, sent.sender, sent.message_id, "7")
    await publish(nc, subjects.inbox("bob"), b"{}", fields)
    await project(impatient)
    await impatient.settle_once()
    assert await outcomes(redis, message_id=sent.message_id) == ["c", "n"]
    rows = [each.row() for each in await ask(Store(redis, NAMESPACE), Question(message_id=sent.message_id))]
    said = {(row["op"], row["by"], row["dead_letter"], row["outcome"]) for row in rows}
    assert said == {("redrive", "olga", "7", "committed"), ("redrive", "olga", "8", "not_committed")}
    recall = Recall(Store(redis, NAMESPACE))
    assert await recall.redriven(sent.sender, sent.message_id, 7) is True
    assert await recall.redriven(sent.sender, sent.message_id, 8) is False
    own = {"Nats-Msg-Id": dedup_id(NAMESPACE, sent.sender, sent.message_id)}
    assert not (await publish(nc, subjects.inbox("bob"), b"{}", own)).duplicate
    await intact(redis)


async def test_probes_stay_as_long_as_their_dedup_ids_and_no_longer(nc, redis, monkeypatch):
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    ahead = [0.0]
    projector = Projector(NAMESPACE, nc, redis, KEY, clock=lambda: time.time() + ahead[0])
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(Way.LONE),))
    await project(projector)
    await projector.settle_once()
    await project(projector)
    left: list[int] = []
    for ahead[0] in (0.0, 590.0, 700.0, 1400.0):
        await projector.remove_projected()
        left.append((await api(nc, "STREAM.INFO.INBOX", {}))["state"]["messages"])
    assert left == [3, 3, 0, 0]  # the prober's opening and its probe, and the writer's last record


async def test_a_failure_of_the_projector_is_logged_and_passes(nc, redis, projector, caplog, monkeypatch):
    monkeypatch.setattr("broker_policy.audit.projector._BACKOFF", (0.0, 0.0))
    await redis.set(projector.store.layout.writers, "not a hash at all")
    await redis.hset(projector.store.layout.head, mapping={"i": "x"})
    running = asyncio.create_task(projector.run())

    async def failed() -> bool:
        return "projector failed" in caplog.text

    await until(failed)
    await redis.flushall()
    await (await LogWriter(nc).open()).write(RecordKind.DECISIONS, decisions=(line(),))
    await projected(nc, redis)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_redis_client_that_decodes_is_refused(redis_server):
    client = Redis.from_url(redis_server.url, decode_responses=True)
    with pytest.raises(ValueError, match="decode"):
        Store(client, NAMESPACE)
    await client.aclose()


async def test_probes_of_two_projectors_agree(nc, redis, impatient):
    writer = await LogWriter(nc).open()
    lines = tuple(line(Way.LONE) for _ in range(20))
    await writer.write(RecordKind.DECISIONS, decisions=lines)
    for place in range(0, 20, 2):
        await writer.deliver(lines[place], place)
    other = Projector(NAMESPACE, nc, redis, KEY)
    for one in (impatient, other):
        await project(one)
    results = await asyncio.gather(impatient.settle_once(), other.settle_once(), return_exceptions=True)
    assert any(isinstance(result, int) for result in results)
    assert all(isinstance(result, int | Overtaken) for result in results)
    assert await outcomes(redis, sender="alice") == ["c", "n"] * 10
    await intact(redis)


async def test_a_slow_writer_is_not_dead(nc, redis, projector):
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(Way.LONE),))
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == [" "]


# -- tampering with the log ------------------------------------------------------------------------------
async def alarms(redis: Redis) -> list[str]:
    report = await verify(Store(redis, NAMESPACE), None, [])
    assert all(finding.kind is FindingKind.ALARM for finding in report.findings)
    return [finding.text for finding in report.findings]


async def test_a_removed_record_is_an_alarm(nc, redis, projector, caplog):
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    victim = await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await delete_message(nc, "INBOX", victim)
    await project(projector)
    assert await alarms(redis) == []  # not before a later record was seen
    assert caplog.text == ""
    await writer.write(RecordKind.MARK)
    await project(projector)
    [text] = await alarms(redis)
    assert "gap" in text
    assert "records 3 to 3" in text
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert "ALARM" in said
    assert "gap" in said
    assert "records 3 to 3" in said


async def test_a_removed_first_record_is_an_alarm(nc, redis, projector):
    writer = LogWriter(nc)
    victim = await writer.write(RecordKind.OPEN)
    await delete_message(nc, "INBOX", victim)
    await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await project(projector)
    [text] = await alarms(redis)
    assert "gap" in text


async def test_an_altered_record_is_an_alarm_and_its_decisions_are_marked(nc, redis, projector):
    writer = await LogWriter(nc).open()
    record = writer.record(RecordKind.DECISIONS, decisions=(line(), line(Way.BATCH), line(Way.LONE)))
    await writer.put(record, mac="0" * 64)
    await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await project(projector)
    [text] = await alarms(redis)
    assert "mac" in text
    found = await ask(Store(redis, NAMESPACE), Question(sender="alice"))
    assert [answer.entry.get("m") for answer in reversed(found)] == ["mac", "mac", "mac", None]
    assert [answer.outcome for answer in reversed(found)] == ["?", "?", "?", "r"]


async def test_a_broken_link_is_an_alarm(nc, redis, projector):
    writer = await LogWriter(nc).open()
    writer.previous = "ab" * 32
    await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await project(projector)
    [text] = await alarms(redis)
    assert "link" in text


async def test_a_replayed_record_is_an_alarm(nc, redis, projector):
    writer = await LogWriter(nc).open()
    record = writer.record(RecordKind.DECISIONS, decisions=(line(),))
    await writer.put(record)
    await writer.put(record)
    await writer.write(RecordKind.MARK)
    await project(projector)
    [text] = await alarms(redis)
    assert "renumbered" in text


async def test_a_record_under_a_foreign_subject_is_an_alarm(nc, redis, projector):
    writer = await LogWriter(nc).open()
    await writer.put(writer.record(RecordKind.MARK), subject="mas.audit.other.7")
    await project(projector)
    [text] = await alarms(redis)
    assert "misplaced" in text


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"v":1}', b'{"v":2}', b"\xff\xfe"])
async def test_an_unreadable_record_stops_nothing(nc, redis, projector, body):
    await nc.request("mas.audit.evil.1", body, timeout=10)
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await project(projector)
    [text] = await alarms(redis)
    assert "unreadable" in text
    assert len(await ask(Store(redis, NAMESPACE), Question())) == 1


@pytest.mark.parametrize(
    "changes",
    [{"size": 1.5}, {"size": 1 << 60}, {"type": None}, {"time": "x"}, {"rule": ["a"]}],
    ids=str,
)
async def test_a_record_with_wrong_types_stops_nothing(nc, redis, projector, changes):
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(**changes),))
    await project(projector)
    [text] = await alarms(redis)
    assert "unreadable" in text


async def test_a_log_that_begins_anew_is_an_alarm_and_is_projected(nc, redis, projector, caplog):
    writer = await LogWriter(nc).open()
    for _ in range(5):
        await writer.write(RecordKind.DECISIONS, decisions=(line(),))
    await project(projector)
    await nc.jetstream().delete_stream("INBOX")
    await make_streams(nc)
    await (await LogWriter(nc).open()).write(RecordKind.DECISIONS, decisions=(line(),))
    projector._next.clear()
    await project(projector)
    await project(projector)
    [text] = await alarms(redis)
    assert "restarted" in text
    assert caplog.text.count("ALARM") == 1
    assert len(await ask(Store(redis, NAMESPACE), Question())) == 6


# -- a log that is lost ------------------------------------------------------------------------------------
async def make_anew(nc: Client) -> None:
    await nc.jetstream().delete_stream("INBOX")
    await make_streams(nc)


async def notice(projector: Projector) -> None:
    """Project a log that was made anew."""
    projector._next.clear()
    await project(projector)
    await project(projector)


async def with_a_long_past(nc: Client, count: int = 50) -> LogWriter:
    """A writer whose next records lie behind ``count`` others: further than the log made anew will reach."""
    writer = await LogWriter(nc).open()
    for _ in range(count):
        await writer.write(RecordKind.MARK)
    return writer


async def test_a_look_at_a_lost_log_says_nothing_of_the_one_after_it(nc, redis, projector):
    """What was handled in it lay further on than what waits in the log made anew."""
    writer = await with_a_long_past(nc)
    await writer.batch([line(Way.BATCH) for _ in range(3)])
    await notice(projector)
    await handle(nc, "bob", 3)
    look = await projector._settler._handled.look()
    [left] = look.left
    assert left.handled > 50
    await make_anew(nc)
    later = await LogWriter(nc).open()
    await later.batch([line(Way.BATCH, sender="dora") for _ in range(6)])
    await notice(projector)
    assert await projector._settler._handled.settle(look) == 0
    assert await outcomes(redis, sender="dora") == ["c"] * 6
    await handle(nc, "bob", 6)
    await projector.settle_once()
    assert await outcomes(redis, sender="dora") == ["h"] * 6


async def test_a_look_before_a_cut_says_nothing_of_places_that_are_given_away_again(
    nc, redis, projector, monkeypatch
):
    """A decision of before the cut may be stored behind it, where others lay that were handled."""
    monkeypatch.setattr("broker_policy.audit.projector._SURE", 0.0)
    writer, other = await LogWriter(nc).open(), await LogWriter(nc).open()
    lone = line(Way.LONE, sender="dora")
    recorded = await writer.write(RecordKind.DECISIONS, decisions=(lone,))
    lost = await other.batch([line(Way.BATCH) for _ in range(3)])
    await project(projector)
    await handle(nc, "bob", 3)
    look = await projector._settler._handled.look()
    assert [(left.first, left.handled) for left in look.left] == [(lost + 1, lost + 3)]
    made = (await log.end(nc)).made

    async def cut_off(_: Client) -> log.End:
        return log.End(recorded, made)

    with monkeypatch.context() as patched:
        patched.setattr(log, "end", cut_off)
        await projector._notice_restart()
    await writer.settle((2, 0, Outcome.COMMITTED, lost + 2))
    await project(projector)
    assert await projector._settler._handled.settle(look) == 0
    assert (await outcomes(redis, sender="dora"))[0] == "c"


@pytest.mark.parametrize("agents", [1, 40])
async def test_much_that_was_handled_is_settled_once_in_few_entries(
    nc, redis, projector, monkeypatch, agents
):
    """However it is distributed; and not all by one look, since the log waits meanwhile."""
    monkeypatch.setattr("broker_policy.audit.handled._AT_ONCE", 50)
    monkeypatch.setattr("broker_policy.audit.handled._MOST", 100)
    names = [f"agent{number}" for number in range(agents)]
    await make_streams(nc, names)
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH, target=names[number % agents]) for number in range(240)])
    await project(projector)
    for name in names:
        await handle(nc, name, 240 // agents)
    before = projector._tail.head.index
    counts = [await projector.settle_once() for _ in range(4)]
    assert max(counts) <= 150
    assert sum(counts) == 240
    assert await all_outcomes(redis) == ["h"] * 240
    entries = [stored.entry() async for stored in Store(redis, NAMESPACE).entries(before + 1)]
    settled = settled_in(entries)
    assert len(settled) == len(set(settled)) == 240
    assert len(entries) <= 12
    assert not await redis.keys(f"{projector.store.layout.prefix}open:*")
    await intact(redis)


async def test_who_is_overtaken_in_the_middle_settles_nothing_twice(nc, redis, projector, monkeypatch):
    """What it listed is another's to settle; what it had settled stays."""
    monkeypatch.setattr("broker_policy.audit.handled._AT_ONCE", 40)
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH) for _ in range(100)])
    await project(projector)
    await handle(nc, "bob", 100)
    another, listed = Projector(NAMESPACE, nc, redis, KEY), projector._settler._handled._listed
    asked = 0

    async def overtaken(*arguments: Any) -> list[list[int]]:
        nonlocal asked
        found = await listed(*arguments)
        asked += 1
        if asked == 2:
            await another.settle_once()
        return found

    monkeypatch.setattr(projector._settler._handled, "_listed", overtaken)
    with pytest.raises(Overtaken):
        await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h"] * 100
    assert await projector.settle_once() == 0
    settled = settled_in([stored.entry() async for stored in Store(redis, NAMESPACE).entries()])
    assert len(settled) == len(set(settled)) == 100
    await intact(redis)


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "when outcomes are looked for"])
async def test_what_waited_in_a_lost_log_is_not_called_handled(nc, redis, projector, noticed):
    """Other messages get its places, and are handled."""
    writer = await with_a_long_past(nc)
    await writer.batch([line(Way.BATCH) for _ in range(3)])
    await notice(projector)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["c"] * 3
    await make_anew(nc)
    if noticed:
        await notice(projector)
        assert await outcomes(redis, sender="alice") == ["?"] * 3
    later = await LogWriter(nc).open()
    await later.batch([line(Way.BATCH, sender="dora") for _ in range(60 if noticed else 6)])
    if noticed:
        await project(projector)
    await handle(nc, "bob", 6)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["?"] * 3
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["?"] * 3
    assert (await outcomes(redis, sender="dora"))[:6] == ["h"] * 6
    [text] = await alarms(redis)
    assert "restarted" in text
    reasons = [entry.get("r") async for stored in projector.store.entries() if (entry := stored.entry())]
    assert "lost with the log" in reasons


async def test_a_report_about_a_place_that_is_used_again(nc, redis, projector):
    """It is about the message that is there now, and not about one that was lost with the log before."""
    record = await (await LogWriter(nc).open()).batch([line(Way.BATCH)])
    await (await LogWriter(nc).open()).report("bob", record + 7, Outcome.DEAD)  # its decision never comes
    await notice(projector)
    await make_anew(nc)
    await notice(projector)
    layout = projector.store.layout
    assert not await redis.exists(layout.opened, layout.early, layout.batches, layout.open("bob"))
    later = await LogWriter(nc).open()
    assert await later.batch([line(Way.BATCH, sender="dora") for _ in range(8)]) == record
    await later.report("bob", record + 1, Outcome.DEAD)
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["?"]
    assert await outcomes(redis, sender="dora") == ["d", *["c"] * 7]
    told = [entry async for stored in projector.store.entries() if (entry := stored.entry()).get("g")]
    assert [(entry["o"], entry["q"]) for entry in told] == [("d", [record + 7])]


async def test_what_was_not_settled_when_its_log_was_lost(nc, redis, projector):
    """Where a message was stored its worker says of the log that is gone; an act was done all the same."""
    writer = await LogWriter(nc).open()
    lines = (line(Way.LONE), line(Way.ACT, op="reply"), line(Way.LONE))
    await writer.write(RecordKind.DECISIONS, decisions=lines)
    sequence = await writer.deliver(lines[0])
    await notice(projector)
    await make_anew(nc)
    await notice(projector)
    assert await outcomes(redis, sender="alice") == ["?", " ", "?"]
    await writer.settle((2, 0, Outcome.COMMITTED, sequence), (2, 1, Outcome.APPLIED, 0))
    await project(projector)
    assert await outcomes(redis, sender="alice") == ["?", "a", "?"]
    assert not await redis.exists(projector.store.layout.open("bob"))


async def test_a_lost_log_with_much_in_it_is_left_step_by_step(nc, redis, projector, monkeypatch):
    """A projector that ends in the middle leaves the rest to another."""
    monkeypatch.setattr("broker_policy.audit.lost_log.AT_ONCE", 3)
    await make_streams(nc, ["bob", "carol"])
    writer = await with_a_long_past(nc)
    lines = [line(Way.BATCH, target=target) for target in ("bob", "carol") for _ in range(7)]
    await writer.batch(lines)
    await writer.write(RecordKind.DECISIONS, decisions=tuple(line(Way.LONE) for _ in range(4)))
    await notice(projector)
    await make_anew(nc)
    appended, append = 0, projector._tail.append

    async def ended(*arguments: Any) -> None:
        nonlocal appended
        appended += 1
        if appended == 3:
            raise asyncio.CancelledError
        await append(*arguments)

    monkeypatch.setattr(projector._tail, "append", ended)
    with pytest.raises(asyncio.CancelledError):
        await notice(projector)
    assert (await outcomes(redis, sender="alice")).count("?") == 6
    await notice(Projector(NAMESPACE, nc, redis, KEY))
    assert await outcomes(redis, sender="alice") == ["?"] * 18
    [text] = await alarms(redis)
    assert "restarted" in text
    settled = settled_in([stored.entry() async for stored in Store(redis, NAMESPACE).entries()])
    assert sorted(settled) == sorted(set(settled))


async def test_a_leader_that_lags_behind_a_copy_has_lost_nothing(nc, redis, projector, monkeypatch):
    """The record was read from a node that had applied it already."""
    writer = await with_a_long_past(nc)
    await writer.batch([line(Way.BATCH)])
    await notice(projector)
    there, asked = await log.end(nc), 0

    async def lagging(_: Client) -> log.End:
        nonlocal asked
        asked += 1
        return log.End(there.sequence - 2, there.made) if asked == 1 else there

    monkeypatch.setattr("broker_policy.audit.projector._SURE", 0.0)
    monkeypatch.setattr(log, "end", lagging)
    await projector.settle_once()
    assert asked > 1
    assert await alarms(redis) == []
    assert await outcomes(redis, sender="alice") == ["c"]


async def test_a_report_behind_a_cut_finds_no_other_message(nc, redis, projector, monkeypatch):
    monkeypatch.setattr("broker_policy.audit.lost_log._CLOCKS", 0)
    monkeypatch.setattr("broker_policy.audit.projector._SURE", 0.0)
    record = await (await LogWriter(nc).open()).batch([line(Way.BATCH)])
    writer = await LogWriter(nc).open()
    await writer.report("bob", record + 1, Outcome.REDELIVERED)
    await writer.report("bob", record + 40, Outcome.DEAD)
    await project(projector)
    made = (await log.end(nc)).made

    async def cut_off(_: Client) -> log.End:
        return log.End(record + 1, made)

    with monkeypatch.context() as patched:
        patched.setattr(log, "end", cut_off)
        await projector._notice_restart()
    assert await redis.hlen(projector.store.layout.early) == 0
    told = [entry async for stored in projector.store.entries() if (entry := stored.entry()).get("g")]
    assert [(entry["o"], entry["q"]) for entry in told] == [("d", [record + 40])]


async def test_a_log_that_was_cut_off_still_has_what_lies_before(nc, redis, monkeypatch):
    """By a power cut, where the server may flush late."""
    monkeypatch.setattr("broker_policy.audit.lost_log._CLOCKS", 0)
    ahead = [0.0]
    projector = Projector(NAMESPACE, nc, redis, KEY, clock=lambda: time.time() + ahead[0])
    writer = await LogWriter(nc).open()
    record = await writer.batch([line(Way.BATCH) for _ in range(4)])
    await writer.write(RecordKind.MARK)
    await project(projector)
    await projector.remove_projected()
    made = (await log.end(nc)).made

    async def cut_off(_: Client) -> log.End:
        return log.End(record + 2, made)

    with monkeypatch.context() as patched:
        patched.setattr(log, "end", cut_off)
        await projector._notice_restart()
        ahead[0] = 800.0
        assert await projector.remove_projected() == 0  # what was projected before says nothing any more
    assert await outcomes(redis, sender="alice") == ["c", "c", "?", "?"]
    await handle(nc, "bob", 2)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == ["h", "h", "?", "?"]


async def test_who_takes_over_notices_that_the_log_is_another_however_long_it_is(nc, redis, projector):
    """Nobody projected while it was lost, made anew, and grew."""
    await (await LogWriter(nc).open()).batch([line(Way.BATCH) for _ in range(3)])
    await project(projector)
    before = await projector.store.head()
    await make_anew(nc)
    writer = await LogWriter(nc).open()
    for _ in range(before.sequence + 5):
        await writer.write(RecordKind.DECISIONS, decisions=(line(sender="dora"),))
    assert (await log.end(nc)).sequence > before.sequence
    await project(Projector(NAMESPACE, nc, redis, KEY))
    assert await outcomes(redis, sender="alice") == ["?"] * 3
    assert len(await ask(Store(redis, NAMESPACE), Question(sender="dora"), limit=100)) == before.sequence + 5
    [text] = await alarms(redis)
    assert "restarted" in text


async def test_of_a_head_that_an_earlier_version_wrote_it_is_not_known_which_log_it_is_of(
    nc, redis, projector
):
    writer = await LogWriter(nc).open()
    await writer.batch([line(Way.BATCH) for _ in range(3)])
    await project(projector)
    await redis.hdel(projector.store.layout.head, "m")
    await writer.write(RecordKind.MARK)
    other = Projector(NAMESPACE, nc, redis, KEY)
    await project(other)
    assert await alarms(redis) == []
    assert (await other.store.head()).made == (await log.end(nc)).made


@pytest.mark.parametrize("noticed_by", ["this", "another", "nobody"])
async def test_nothing_is_removed_from_a_new_log_that_is_not_projected(nc, redis, noticed_by):
    """A projector that removed from the log before, whose records had the same places."""
    ahead = [0.0]
    projector = Projector(NAMESPACE, nc, redis, KEY, clock=lambda: time.time() + ahead[0])
    writer = await with_a_long_past(nc)
    await project(projector)
    await projector.remove_projected()
    await writer.write(RecordKind.MARK)  # is to be removed
    await notice(projector)
    await make_anew(nc)
    if noticed_by != "nobody":
        await notice(projector if noticed_by == "this" else Projector(NAMESPACE, nc, redis, KEY))
    writers = [writer, await LogWriter(nc).open()]
    lines = [line() for _ in range(20 if noticed_by == "this" else 60)]
    for place, each in enumerate(lines):
        await writers[place % 2].write(RecordKind.DECISIONS, decisions=(each,))
    ahead[0] = 800.0
    assert await projector.remove_projected() == 0
    if noticed_by == "another":
        projector._lead()  # as it does when it takes over
    with contextlib.suppress(Overtaken):
        await notice(projector)
    await notice(projector)
    assert len(await ask(Store(redis, NAMESPACE), Question(sender="alice"), limit=100)) == len(lines)
    [text] = await alarms(redis)
    assert "restarted" in text
    assert await projector.remove_projected() == len(lines) + 1 - len(writers)


async def test_probes_of_a_new_log_stay_where_another_projected_it(nc, redis, monkeypatch):
    """What one that takes over knows of the log before does not say how old they are."""
    monkeypatch.setattr("broker_policy.audit.outcomes.SILENT", -1.0)
    ahead = [0.0]
    projector, other = (
        Projector(NAMESPACE, nc, redis, KEY, clock=lambda: time.time() + ahead[0]) for _ in range(2)
    )
    await with_a_long_past(nc)
    await project(projector)
    await projector.remove_projected()
    await make_anew(nc)
    await notice(other)
    ahead[0] = 800.0
    writer = await with_a_long_past(nc, 1)
    await writer.write(RecordKind.DECISIONS, decisions=(line(Way.LONE),))
    await project(other)
    await other.settle_once()
    for _ in range(60):
        await writer.write(RecordKind.MARK)
    await project(other)
    await projector.remove_projected()
    info = await api(nc, "STREAM.INFO.INBOX", {"subjects_filter": ">"})
    assert sum(is_probe(subject) for subject in info["state"]["subjects"]) == 2  # its opening, and the probe


# -- many projectors, and outages --------------------------------------------------------------------------
async def decisions_once(redis: Redis, written: list[str]) -> None:
    """Every decision is in the chain once, and each writer's are in order."""
    found = [
        entry["id"]
        async for stored in Store(redis, NAMESPACE).entries()
        if (entry := stored.entry())["k"] == "d"
    ]
    assert sorted(found) == sorted(written)
    await intact(redis)


async def write_for_long(writer: LogWriter, count: int) -> list[str]:
    written: list[str] = []
    for _ in range(count):
        lines = [line(random.choice([Way.BATCH, Way.NONE])) for _ in range(random.randint(1, 20))]
        written += [each.message_id for each in lines]
        await writer.batch(lines)
    await writer.write(RecordKind.MARK)
    return written


async def test_racing_projectors_cancelled_at_random_points(nc, redis):
    writers = [await LogWriter(nc).open() for _ in range(2)]
    writing = asyncio.gather(*(write_for_long(writer, 100) for writer in writers))

    async def race() -> None:
        projector = Projector(NAMESPACE, nc, redis, KEY)
        while not asyncio.current_task().cancelling():  # see projector._raise_if_cancelled
            with contextlib.suppress(Overtaken):
                await projector.project_once()
                await projector.remove_projected()
            await asyncio.sleep(0)

    while not writing.done():
        racers = [asyncio.create_task(race()) for _ in range(3)]
        await asyncio.wait([writing], timeout=random.uniform(0.005, 0.05))
        for racer in racers:
            racer.cancel()
        for result in await asyncio.gather(*racers, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
    await project(Projector(NAMESPACE, nc, redis, KEY))
    await decisions_once(redis, [each for some in await writing for each in some])


PROCESS = """
import asyncio, sys
from pathlib import Path
from types import SimpleNamespace
from redis.asyncio import Redis
from broker_policy.audit.projector import Projector
from tests.audit_log import KEY, NAMESPACE, connect

async def main(nats_url, ca, cert, key, redis_url):
    paths = SimpleNamespace(ca=ca, cert=cert, key=key)
    nc = await connect(SimpleNamespace(url=nats_url), paths)
    await Projector(NAMESPACE, nc, Redis.from_url(redis_url), KEY, interval=0.01).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_projector_processes_killed_at_random_points(nc, redis, nats_server, redis_server, certificate):
    paths = certificate
    arguments = [nats_server.url, str(paths.ca), str(paths.cert), str(paths.key), redis_server.url]

    def start() -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[2]
        return subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], cwd=root)

    writers = [await LogWriter(nc).open() for _ in range(2)]
    running = [start(), start()]
    try:
        writing = asyncio.gather(*(write_for_long(writer, 400) for writer in writers))
        kills = 0
        while not writing.done() or kills < 4:
            await asyncio.sleep(random.uniform(0.5, 1.0))
            victim = random.randrange(2)
            running[victim].send_signal(signal.SIGKILL)
            running[victim].wait()
            running[victim] = start()
            kills += 1
        written = [each for some in await writing for each in some]
        await projected(nc, redis)
    finally:
        for process in running:
            process.kill()
            process.wait()
    await decisions_once(redis, written)


async def test_redis_killed_and_back(nc, redis, redis_server, projector):
    running = asyncio.create_task(projector.run())
    writer = await LogWriter(nc).open()
    writing = asyncio.create_task(write_for_long(writer, 150))
    for _ in range(3):
        await asyncio.sleep(random.uniform(0.1, 0.3))
        redis_server.kill()
        await asyncio.sleep(0.2)
        await redis_server.start()
    written = await writing
    await projected(nc, redis)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await decisions_once(redis, written)


async def test_a_worker_that_was_silent_during_an_outage_is_not_taken_for_dead(nc, redis, monkeypatch):
    """Silence counts from when the log came back into sight."""
    now = time.time()
    projector = Projector(NAMESPACE, nc, redis, KEY, clock=lambda: now + 3600)
    writer = await LogWriter(nc).open()
    await writer.write(RecordKind.DECISIONS, decisions=(line(Way.LONE),))
    await project(projector)
    await projector.settle_once()
    assert await outcomes(redis, sender="alice") == [" "]
