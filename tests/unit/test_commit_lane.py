"""The inbox lane on a real server: what a sender is told is what the log holds, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from broker_policy import service
from broker_policy.audit import log
from broker_policy.audit.numbering import WriterState, follow, receive
from broker_policy.audit.record import Outcome, Record, RecordKind, Way
from broker_policy.calls.messages import Messages
from broker_policy.commit import writer
from broker_policy.commit.act_lane import Act
from broker_policy.commit.ahead import Ahead
from broker_policy.commit.answered import LogUnreachable, publish_until_answered
from broker_policy.commit.inbox_lane import LONE_MAX
from broker_policy.commit.judged import Judged
from broker_policy.commit.log_room import LogRoom
from broker_policy.dedup import dedup_id
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import delete_message, publish
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.wire import bundle, headers, subjects
from mas_nats.wire.bundle import Part
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import KEY, NAMESPACE, connect
from tests.conftest import StartNats
from tests.lossy import Lossy, Which, batches, from_the_second_on, messages, records
from tests.serving import Serving, document, serving

LIMITS = Limits(inbox_messages=300)
AGENTS = ("alice", "bob", "carol", "full")


@pytest.fixture
def lossy(nc: Client) -> Lossy:
    return Lossy(nc)


@pytest.fixture
async def here(nc: Client, lossy: Lossy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    monkeypatch.setattr("mas_nats.asking._FEW", 0)  # calls of one moment arrive together, and are one batch
    async with serving(nc, document(AGENTS, limits=LIMITS), through=lossy) as up:
        yield up


async def stored(here: Serving) -> dict[str, tuple[int, str]]:
    """Sequence and body of each message in the log, by id; each after its decision, which allows it."""
    places: dict[str, tuple[int, object]] = {}
    found: dict[str, tuple[int, str]] = {}
    states: dict[str, WriterState | None] = {}
    for each in (await log.read(here.nc, 1, most=1000)).messages:
        received = receive(each, NAMESPACE, KEY)
        assert received.record is not None
        assert follow(states.get(received.record.writer), received).findings == ()
        states[received.record.writer] = follow(states.get(received.record.writer), received).state
    for message in await here.log():
        if message.subject.startswith("mas.audit."):
            record = Record.decode(message.data)
            for position, each in enumerate(record.decisions):
                places[f"{record.writer}.{record.number}.{position}"] = (message.sequence, each)
            continue
        if headers.AUDIT not in message.headers:
            continue  # not the service's
        sequence, decision = places[message.headers[headers.AUDIT]]
        assert sequence < message.sequence
        assert (decision.message_id, decision.decision) == (message.headers[headers.MESSAGE_ID], "ALLOWED")
        assert decision.way in (Way.BATCH, Way.LONE)
        assert decision.message_id not in found, "stored twice"
        found[decision.message_id] = (message.sequence, message.data.decode())
    return found


async def occupy(here: Serving, target: str, count: int) -> None:
    """Messages that lie in an inbox already, as if another worker had stored them."""
    for number in range(count):
        fields = {headers.MSG_ID: dedup_id(NAMESPACE, "alice", f"old{number}")}
        fields |= {headers.TARGET: target, headers.TYPE: "work"}
        await publish(here.nc, subjects.inbox(target), b'{"n":%d}' % number, fields)


async def many(here: Serving, count: int, target: str = "bob", first: int = 0) -> list[Verdict]:
    """``count`` sends at once."""
    return list(
        await asyncio.gather(
            *(
                here.send("alice", target, {"n": number}, id=f"new{number}")
                for number in range(first, first + count)
            )
        )
    )


@pytest.mark.parametrize("count", [1, 3, 60])
async def test_told_is_stored(here: Serving, count: int):
    verdicts = await many(here, count)
    assert [verdict.decision for verdict in verdicts] == [Decision.ALLOWED] * count
    assert set(await stored(here)) == {f"new{number}" for number in range(count)}


async def test_one_batch_with_repetitions_reuses_and_a_full_inbox(here: Serving):
    """What only the stream knows rejects a whole batch; each call gets its own truth all the same."""
    await occupy(here, "bob", 3)
    await occupy_full(here)
    calls = [here.send("alice", "bob", {"n": number}, id=f"new{number}") for number in range(40)]
    calls += [here.send("alice", "bob", {"n": number}, id=f"old{number}") for number in range(3)]
    calls += [
        here.send("alice", "bob", {"n": 99}, id="old0"),
        here.send("alice", "carol", {"n": 1}, id="old1"),
    ]
    calls += [here.send("carol", "full", {"n": number}, id=f"full{number}") for number in range(3)]
    verdicts = [(verdict.decision, verdict.duplicate) for verdict in await asyncio.gather(*calls)]
    assert verdicts[:40] == [(Decision.ALLOWED, False)] * 40
    assert verdicts[40:43] == [(Decision.ALLOWED, True)] * 3
    assert verdicts[43:45] == [(Decision.ID_REUSED, False)] * 2
    assert verdicts[45:] == [(Decision.INBOX_FULL, False)] * 3
    assert set(await stored(here)) == {f"new{number}" for number in range(40)}


async def occupy_full(here: Serving) -> None:
    for _ in range(LIMITS.inbox_messages):
        await here.nc.publish(subjects.inbox("full"), b"{}")
    await here.nc.flush()


async def test_the_same_id_many_times_at_once(here: Serving):
    verdicts = await asyncio.gather(*(here.send("alice", "bob", {"n": 1}, id="same") for _ in range(200)))
    assert all(verdict.ok for verdict in verdicts)
    assert sum(not verdict.duplicate for verdict in verdicts) == 1
    others = await asyncio.gather(*(here.send("alice", "bob", {"n": n}, id="same") for n in range(2, 60)))
    assert {verdict.decision for verdict in others} == {Decision.ID_REUSED}
    assert set(await stored(here)) == {"same"}


# -- answers that get lost --------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["lose", "swallow"])
@pytest.mark.parametrize("which", [records, messages], ids=["record", "message"])
async def test_a_lone_message_is_stored_once(here: Serving, lossy: Lossy, fault: str, which: object):
    getattr(lossy, fault)(which, times=2)
    verdict = await here.send("alice", "bob", id="new0")
    assert (verdict.ok, verdict.duplicate) == (True, False)
    assert set(await stored(here)) == {"new0"}
    assert await settled(here, "new0") == Outcome.COMMITTED


async def settled(here: Serving, message_id: str) -> Outcome:
    """What became of the lone decision about a message, as its writer says."""
    async with asyncio.timeout(5):
        while True:
            found = await here.records()
            for record in found:
                for position, each in enumerate(record.decisions):
                    for other in found:
                        for one in other.settlements:
                            if (
                                each.message_id == message_id
                                and (one.number, one.position) == (record.number, position)
                                and other.writer == record.writer
                            ):
                                return one.outcome
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", ["lose", "swallow"])
async def test_a_batch_whose_answer_never_comes(here: Serving, lossy: Lossy, fault: str):
    """Also when the answer to the VOID that takes its place gets lost too."""
    getattr(lossy, fault)(batches)
    lossy.lose(lambda subject, fields: records(subject, fields) and lossy.happened.is_set())
    verdicts = await many(here, 60)
    assert [(verdict.decision, verdict.duplicate) for verdict in verdicts] == [(Decision.ALLOWED, False)] * 60
    assert set(await stored(here)) == {f"new{number}" for number in range(60)}
    voids = [record for record in await here.records() if record.kind is RecordKind.VOID]
    assert len(voids) == (fault == "swallow")


async def test_an_unanswered_batch_is_judged_again(here: Serving, lossy: Lossy):
    """What was permitted when it was judged may be forbidden when it is stored at last."""
    resolving, forbidden = asyncio.Event(), asyncio.Event()

    def at_void(subject: str, fields: dict[str, str]) -> bool:
        if lossy.happened.is_set() and records(subject, fields) and not forbidden.is_set():
            resolving.set()
            return True
        return False

    lossy.swallow(batches)
    lossy.swallow(at_void, times=60)
    sending = asyncio.create_task(many(here, 60))
    await resolving.wait()
    current = await here.store.get(NAMESPACE)
    assert current is not None
    nobody = document(AGENTS, allow={}, limits=LIMITS)
    revision = await here.store.put(nobody, expected=current.sequence)
    await here.store.wait_confirmed(revision)
    forbidden.set()
    verdicts = await sending
    early = [verdict for verdict in verdicts if verdict.ok]  # came before the others, and went alone
    assert len(early) <= LONE_MAX
    assert {verdict.decision for verdict in verdicts if not verdict.ok} == {Decision.AUTHZ_DENIED}
    assert len(await stored(here)) == len(early)


async def test_refused_is_not_told_while_it_may_be_stored(here: Serving, lossy: Lossy):
    """The first try of a lone message goes unanswered, the second finds the inbox full."""
    for _ in range(LIMITS.inbox_messages - 1):
        await here.nc.publish(subjects.inbox("full"), b"{}")
    lossy.swallow(messages)
    sending = asyncio.create_task(here.send("alice", "full", id="new0"))
    await lossy.happened.wait()
    await publish(here.nc, subjects.inbox("full"), b"{}", {})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sending, 1)
    verdict = await here.send("alice", "full", id="new0")
    assert verdict.decision is Decision.INBOX_FULL


async def all_settled(here: Serving) -> list[tuple[Outcome, int]]:
    """What the lane has settled by the next message that it stores: outcomes and places."""
    while not (await here.send("alice", "carol")).ok:
        await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        while True:
            found = [each for record in await here.records() for each in record.settlements]
            places = {each.sequence for each in await here.log() if each.subject == subjects.inbox("carol")}
            if places <= {each.sequence for each in found}:
                return [(each.outcome, each.sequence) for each in found if each.sequence not in places]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("before", [True, False], ids=["before its record", "behind its record"])
async def test_a_message_that_is_gone(here: Serving, lossy: Lossy, before: bool):
    """The first try of a lone message goes unanswered; the second finds its id taken, and nothing there.

    What lies before its record is a repetition's. What lies behind it may be another's, too, and whose it
    was is not guessed here: the decision stays without an outcome, which the projector finds.
    """
    tries = 0

    def second_try(subject: str, fields: dict[str, str]) -> bool:
        nonlocal tries
        tries += messages(subject, fields)
        return tries == 2

    again = lossy.hold(second_try)
    if before:
        lossy.swallow(messages)
        fields = {headers.MSG_ID: dedup_id(NAMESPACE, "alice", "new0"), headers.AUDIT: "w9i.7.0"}
        await publish(here.nc, subjects.inbox("bob"), b"null", fields)
    else:
        lossy.lose(messages)
    sending = asyncio.create_task(here.send("alice", "bob", id="new0"))
    while tries < 2:
        await asyncio.sleep(0.01)
    [place] = [each.sequence for each in await here.log() if each.subject == subjects.inbox("bob")]
    assert await delete_message(here.nc, subjects.INBOX_STREAM, place)
    again()
    await sending
    assert await all_settled(here) == ([(Outcome.DUPLICATE, 0)] if before else [])


async def test_messages_of_an_unanswered_batch_that_are_gone(here: Serving, lossy: Lossy):
    """They were where the batch put them, so they were its own."""

    def void(subject: str, fields: dict[str, str]) -> bool:
        return lossy.happened.is_set() and records(subject, fields)

    lossy.lose(batches)
    go_on = lossy.hold(void)
    sending = asyncio.create_task(many(here, 60))
    await lossy.happened.wait()
    log_ = await here.log()
    lone = {each.sequence for each in log_ if headers.BATCH_ID not in each.headers}
    places = [each.sequence for each in log_ if each.subject.startswith("mas.inbox.")]
    for place in places:
        assert await delete_message(here.nc, subjects.INBOX_STREAM, place)
    go_on()
    await sending
    found = await all_settled(here)
    committed = {place for outcome, place in found if outcome is Outcome.COMMITTED}
    assert set(places) - lone <= committed
    assert {outcome for outcome, _ in found} == {Outcome.COMMITTED}


# -- another connection -----------------------------------------------------------------------------------
def after_the_next_record() -> Which:
    """The record that the inbox lane has to write once another connection carries its messages."""
    return from_the_second_on(lambda subject, fields: records(subject, fields) and "i." in subject)


async def test_behind_a_new_connection_comes_a_record_first(here: Serving, lossy: Lossy):
    here.service._room.copies = 3  # then a message waits for its record
    assert (await here.send("alice", "bob", id="before")).ok
    release = lossy.hold(records)
    sending = asyncio.create_task(here.send("alice", "bob", id="new0"))
    await lossy.happened.wait()
    here.nc.stats["reconnects"] += 1
    release()
    assert (await sending).ok
    messages_ = await here.log()
    [place] = [n for n, each in enumerate(messages_) if each.headers.get(headers.MESSAGE_ID) == "new0"]
    record = Record.decode(messages_[place - 1].data)
    assert record.kind is RecordKind.MARK
    assert record.writer.endswith("i")
    assert "new0" in await stored(here)


async def test_where_that_record_finds_no_room_the_message_is_refused(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("broker_policy.commit.inbox_lane.LONE_MAX", 2)
    here.service._room.copies = 3  # then a message waits for its record
    assert (await here.send("alice", "bob", id="before")).ok
    first, later = lossy.hold(records), lossy.hold(records)
    sending = [asyncio.create_task(here.send("alice", "bob", id="first"))]
    await lossy.happened.wait()
    sending += [asyncio.create_task(here.send("alice", "bob", id=f"new{n}")) for n in range(2)]
    async with asyncio.timeout(5):
        while len(here.service._inbox._waiting) < 2:
            await asyncio.sleep(0.01)
    lossy.happened.clear()
    first()
    await lossy.happened.wait()
    here.nc.stats["reconnects"] += 1
    lossy.refuse(after_the_next_record())  # which is theirs
    later()
    decisions = [verdict.decision for verdict in await asyncio.gather(*sending)]
    assert decisions == [Decision.ALLOWED, Decision.LOG_FULL, Decision.LOG_FULL], "each asked for itself"
    assert (await here.send("alice", "bob", id="after")).ok
    assert set(await stored(here)) == {"before", "first", "after"}


async def test_but_not_while_it_may_be_stored(here: Serving, lossy: Lossy):
    """The batch is, and its answer was lost together with the connection."""
    assert (await here.send("alice", "bob", id="before")).ok
    lossy.lose(batches)
    lossy.refuse(after_the_next_record())  # which asks whether the batch is there
    sending = asyncio.gather(*(here.send("alice", "bob", {"n": n}, id=f"new{n}") for n in range(20)))
    await lossy.happened.wait()
    here.nc.stats["reconnects"] += 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sending, 1)
    assert not lossy._faults
    assert [verdict.decision for verdict in await many(here, 20)] == [Decision.ALLOWED] * 20
    assert set(await stored(here)) == {"before", *(f"new{n}" for n in range(20))}


# -- no room ------------------------------------------------------------------------------------------------
async def test_a_full_log_refuses_also_from_the_start_and_repetitions_stay_accepted(nc: Client):
    limits = Limits(log_bytes=40_000)
    async with serving(nc, document(AGENTS, limits=limits)) as here:
        assert (await here.send("alice", "bob", {"n": 1}, id="first")).ok
        while True:
            verdict = await here.send("alice", "bob", {"text": "x" * 2000})
            if not verdict.ok:
                break
        assert verdict.decision is Decision.LOG_FULL
        again = await here.send("alice", "bob", {"n": 1}, id="first")
        assert (again.decision, again.duplicate) == (Decision.ALLOWED, True)
        assert (await here.send("alice", "nobody")).decision is Decision.UNKNOWN_TARGET
    await fill(nc, limits.log_bytes)
    async with serving(nc, document(AGENTS, limits=limits)) as here:
        verdicts = await asyncio.wait_for(many(here, 20), 5)
        assert {verdict.decision for verdict in verdicts} == {Decision.LOG_FULL}
        await nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox("bob"))
        async with asyncio.timeout(5):
            while not (await here.send("alice", "bob")).ok:
                await asyncio.sleep(0.1)
        lines = [each for record in await here.records() for each in record.decisions]
        assert sum(each.decision == "LOG_FULL" for each in lines) >= 20


async def test_a_log_full_of_messages_keeps_nobody_elses_state_out(nc: Client):
    """The log is full of them. Up to a sixteenth more is for what leaves it by itself."""
    limits = Limits(log_bytes=400_000)
    async with serving(nc, document(("alice", "bob", "carol"), limits=limits)) as here:
        await fill(nc, limits.log_bytes)
        await here.service._room.look()
        assert (await here.send("carol", "alice")).decision is Decision.LOG_FULL
        updated = {"op": "put", "revision": 0, "value": {"a": 1}}
        assert (await here.call("carol", "state", updated, **{headers.MSG_ID: "s1"})).ok
        await fill(nc, limits.log_bytes // 8)
        await here.service._room.look()
        refused = await here.call("carol", "state", {**updated, "revision": 1}, **{headers.MSG_ID: "s2"})
        assert refused.decision is Decision.LOG_FULL


async def fill(nc: Client, size: int) -> None:
    for _ in range(size // 2000):
        await publish(nc, subjects.inbox("bob"), b"x" * 2000, {})


@pytest.mark.slow
async def test_a_store_that_fills_up_within_a_batch(
    start_nats: StartNats, ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server stores a part of the batch and says nothing; each sender is told what holds for its message.

    Nothing looks at the room before, as if somebody else had used it up at that moment.
    """
    monkeypatch.setattr(LogRoom, "full", property(lambda _: False))
    store = orjson.dumps(str(tmp_path / "store")).decode()
    server = await start_nats(extra=f"jetstream {{\n store_dir: {store}\n max_file_store: 50MB\n}}")
    nc = await connect(
        server, ca.issue(Identity("mas", "default", Role.POLICY, "worker"), tmp_path / "worker")
    )
    told: dict[str, Verdict] = {}
    body = {"text": "x " * 50_000}
    try:
        async with serving(nc, document(AGENTS, limits=Limits(log_bytes=1_000_000))) as here:

            async def send(number: int) -> None:
                fields = {headers.MSG_ID: f"new{number}", headers.TARGET: "bob", headers.TYPE: "work"}
                with contextlib.suppress(nats.errors.TimeoutError):
                    told[f"new{number}"] = await here.call("alice", "send", body, timeout=14, **fields)

            number = 0
            while len(told) == number and all(verdict.ok for verdict in told.values()):
                await asyncio.gather(*(send(number + each) for each in range(60)))
                number += 60
            there = {each.headers.get(headers.MESSAGE_ID) for each in await here.log()}
    finally:
        await nc.close()
    accepted = {message_id for message_id, verdict in told.items() if verdict.ok}
    assert accepted <= there
    assert not (told.keys() - accepted) & there, "refused, and yet delivered"
    torn = [each for each in range(number - 60, number) if f"new{each}" in accepted]
    assert torn, "no message of the batch that was stored in part was told so"
    assert len(told) == number, "somebody was told nothing"


async def test_a_lane_that_closes_takes_what_an_act_of_its_own_puts(here: Serving):
    """As a message to another namespace does that is refused there: its sender waits for the answer."""
    lane = here.service._acts
    begun, go, told = (asyncio.Event() for _ in range(3))

    async def refuse(_: str | None) -> Outcome:
        told.set()
        return Outcome.REFUSED

    async def act(_: str | None) -> Outcome:
        begun.set()
        await go.wait()
        assert lane.put(Act(refuse))
        await told.wait()
        return Outcome.APPLIED

    assert lane.put(Act(act))
    await begun.wait()
    stopping = asyncio.create_task(here.service.stop())
    while not lane._closing:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # long enough to come to what is under way
    go.set()
    await asyncio.wait_for(stopping, 5)
    assert told.is_set()
    assert not lane.put(Act(refuse)), "nobody would perform it"


# -- floods -------------------------------------------------------------------------------------------------
async def test_records_of_many_ugly_calls_are_not_too_large(here: Serving):
    """Each line says what the call claimed: 500 of the longest would not fit into one record."""
    fields = {headers.MSG_ID: "\x01" * 5000, headers.TARGET: '"' * 5000, headers.TYPE: "\x02" * 5000}
    calls = [here.call("alice", "send", {}, timeout=20, **fields) for _ in range(600)]
    verdicts = await asyncio.gather(*calls)
    assert {verdict.decision for verdict in verdicts} == {Decision.INVALID}
    assert (await here.send("alice", "bob")).ok


async def test_a_call_that_cannot_be_judged_costs_only_itself(here: Serving, monkeypatch: pytest.MonkeyPatch):
    judge_all = Messages.judge_all

    async def fail(self, calls):
        if any(call.message_id == "poison" for call in calls):
            raise RuntimeError("a fault in some step")
        return await judge_all(self, calls)

    monkeypatch.setattr(Messages, "judge_all", fail)
    verdicts = await asyncio.gather(here.send("alice", "bob", id="poison"), many(here, 20))
    assert verdicts[0].decision is Decision.UNAVAILABLE
    assert all(verdict.ok for verdict in verdicts[1])


async def test_large_messages_make_batches_that_the_server_takes(nc: Client):
    async with serving(nc, document(AGENTS)) as here:
        body = {"text": "x " * 300_000}  # not in need of a search apart, one by one
        verdicts = await asyncio.gather(
            *(here.send("alice", "bob", body, id=f"big{number}") for number in range(12))
        )
        assert all(verdict.ok for verdict in verdicts)
        lines = [each for record in await here.records() for each in record.decisions]
        assert {each.way for each in lines} >= {Way.BATCH}
        assert {each.message_id for each in lines} == {f"big{number}" for number in range(12)}


async def test_a_lane_ends_loudly_when_the_log_is_gone(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    impatient = functools.partial(publish_until_answered, patience=0.2)
    monkeypatch.setattr(writer, "publish_until_answered", impatient)
    monkeypatch.setattr(service, "_PATIENCE", 0.1)
    broken = asyncio.create_task(here.service.wait_broken())
    lossy.swallow(lambda subject, _: subject.startswith("mas."), times=1000)
    await here.nc.publish(subjects.call("alice", "send"), b"{}")
    with pytest.raises(LogUnreachable):
        await asyncio.wait_for(broken, 10)
    await asyncio.wait_for(here.service.stop(), 5)


# -- judged ahead -------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def batch_under_way(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Task[list[Verdict]]]:
    """A batch that the server stores when the block ends; within it 60 messages are judged behind it."""
    judged = asyncio.Event()
    wanted = {f"new{number}" for number in range(60)}
    add = Ahead.add

    def noticed(self: Ahead, more: list[Judged]) -> None:
        add(self, more)
        wanted.difference_update(each.call.message_id for each in more)
        if not wanted:
            judged.set()

    monkeypatch.setattr(Ahead, "add", noticed)
    release = lossy.hold(batches)
    parts = [
        Part(
            "send",
            {headers.MSG_ID: f"new{number}", headers.TARGET: "bob", headers.TYPE: "work"},
            b'{"n":%d}' % number,
        )
        for number in range(100, 160)
    ]
    first = asyncio.create_task(
        here.call("alice", "send", bundle.encode(parts), **{headers.BUNDLE: "1"})  # all of them at once
    )
    await lossy.happened.wait()
    behind = asyncio.create_task(many(here, 60))
    async with asyncio.timeout(5):
        await judged.wait()
    yield behind
    release()
    assert bundle.decode_verdicts(await first, 60) == [bundle.PLAIN] * 60


async def test_what_is_judged_ahead_goes_behind_what_came_before(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    async with batch_under_way(here, lossy, monkeypatch) as behind:
        assert not behind.done()
    assert all(verdict.ok for verdict in await behind)
    places = {message_id: sequence for message_id, (sequence, _) in (await stored(here)).items()}
    assert len(places) == 120
    assert max(places[f"new{n}"] for n in range(100, 160)) < min(places[f"new{n}"] for n in range(60))


async def forbid_everything(here: Serving) -> None:
    current = await here.store.get(NAMESPACE)
    assert current is not None
    revision = await here.store.put(document(AGENTS, allow={}, limits=LIMITS), expected=current.sequence)
    await here.store.wait_confirmed(revision)


@pytest.mark.parametrize("control", [False, True])
async def test_what_is_forbidden_meanwhile_is_judged_again(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch, *, control: bool
):
    """The control believes what was judged before, and stores what is forbidden."""
    if control:
        monkeypatch.setattr(Messages, "holds", lambda *_: True)
    async with batch_under_way(here, lossy, monkeypatch) as behind:
        await forbid_everything(here)
    assert {each.decision for each in await behind} == {
        Decision.ALLOWED if control else Decision.AUTHZ_DENIED
    }
    assert len(await stored(here)) == 60 * (1 + control)


async def test_the_order_stays_where_a_batch_is_never_answered(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    """It is judged again, and so is what was judged ahead behind it."""
    lossy.swallow(lambda subject, fields: batches(subject, fields) and lossy.happened.is_set())
    async with batch_under_way(here, lossy, monkeypatch) as behind:
        pass
    assert all(verdict.ok for verdict in await behind)
    places = {message_id: sequence for message_id, (sequence, _) in (await stored(here)).items()}
    assert len(places) == 120
    assert max(places[f"new{n}"] for n in range(100, 160)) < min(places[f"new{n}"] for n in range(60))
    assert [each for each in await here.records() if each.kind is RecordKind.VOID]


async def test_a_repetition_of_what_is_under_way_is_stored_once(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    async with batch_under_way(here, lossy, monkeypatch) as behind:
        again = asyncio.create_task(here.send("alice", "bob", {"n": 100}, id="new100"))
        other = asyncio.create_task(here.send("alice", "bob", {"n": 0}, id="new101"))
        await here.nc.flush()
    assert all(verdict.ok for verdict in await behind)
    assert ((await again).ok, (await again).duplicate) == (True, True)
    assert (await other).decision is Decision.ID_REUSED
    assert len(await stored(here)) == 120


async def test_nothing_that_is_counted_is_judged_ahead(nc: Client):
    """A limit counts what is let through in its turn."""
    limited = Governance(rate_limit=RateLimits(per_minute=1000))
    async with serving(nc, document(AGENTS, governance=limited)) as here:
        assert not here.service._inbox._ahead.room
    async with serving(nc, document(AGENTS)) as here:
        assert here.service._inbox._ahead.room
