"""A record writer on a real server: no gaps, no number twice, whatever gets lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from nats.aio.client import Client

from broker_policy.audit import log
from broker_policy.audit.numbering import WriterState, follow, receive
from broker_policy.audit.record import DecisionLine, Outcome, Record, RecordKind, Report, digest
from broker_policy.commit.answered import LogUnreachable, publish_until_answered
from broker_policy.commit.lines import line_of, weight
from broker_policy.commit.writer import LogFull, Prepared, RecordWriter
from broker_policy.jetstream import direct_get_page
from broker_policy.tenants.streams import tenant_streams
from mas_nats.policy.call import Call
from mas_nats.policy.document import Limits
from mas_nats.wire import headers, subjects
from tests.audit_log import KEY, NAMESPACE, line, make_streams
from tests.lossy import Lossy, records

ROOM = 60_000


@pytest.fixture
async def lossy(nc: Client) -> Lossy:
    await make_streams(nc)
    [config] = (each for each in tenant_streams(Limits()) if each.name == subjects.INBOX_STREAM)
    await nc.jetstream().update_stream(replace(config, max_bytes=ROOM))  # as if the server were full
    return Lossy(nc)


@pytest.fixture
async def writer(lossy: Lossy) -> RecordWriter:
    writer = RecordWriter(lossy, NAMESPACE, "w1i", KEY)
    await writer.write(RecordKind.OPEN)
    return writer


async def stored(nc: Client) -> list[Record]:
    """All records in the log, after looking at them as the projector does."""
    page = await log.read(nc, 1, most=1000)
    states: dict[str, WriterState | None] = {}
    found = []
    for each in page.messages:
        received = receive(each, NAMESPACE, KEY)
        assert received.record is not None
        step = follow(states.get(received.record.writer), received)
        assert step.findings == ()
        states[received.record.writer] = step.state
        found.append(received.record)
    return found


async def fill(nc: Client) -> None:
    """Leave no room in the log."""
    for size in (8_000, 500):
        answer = b""
        while b"maximum bytes" not in answer:
            answer = (await nc.request(subjects.inbox("bob"), b"x" * size, timeout=5)).data


async def make_room(nc: Client) -> None:
    await nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox("bob"))


async def publish_batch(nc: Client, prepared: Prepared, count: int = 2) -> None:
    """The record and ``count`` messages."""
    fields = [dict(prepared.fields)]
    fields += [
        {headers.MSG_ID: f"m{prepared.record.number}.{n}", headers.AUDIT: prepared.reference(n)}
        for n in range(count)
    ]
    names = [prepared.subject] + [subjects.inbox("bob")] * count
    for place, (subject, each) in enumerate(zip(names, fields, strict=True), 1):
        each |= {headers.BATCH_ID: f"b{prepared.record.number}", headers.BATCH_SEQUENCE: str(place)}
        if place <= count:
            await nc.publish(subject, prepared.body if place == 1 else b"{}", headers=each)
        else:
            await nc.request(subject, b"{}", timeout=5, headers=each | {headers.BATCH_COMMIT: "1"})


def kinds(found: Sequence[Record]) -> list[tuple[int, str]]:
    return [(record.number, record.kind.value) for record in found]


async def test_numbers_follow_each_other_and_a_mark_covers_the_last(writer: RecordWriter, nc: Client):
    assert not writer.owes
    await writer.write(RecordKind.DECISIONS, [line()], revision=7)
    assert writer.owes
    writer.settle(2, 0, Outcome.COMMITTED, 5)
    await writer.write(RecordKind.MARK)
    assert not writer.owes
    await writer.close()
    found = await stored(nc)
    assert kinds(found) == [(1, "open"), (2, "decisions"), (3, "mark"), (4, "close")]
    assert [record.revision for record in found] == [0, 7, 7, 7]
    assert [each.sequence for each in found[2].settlements] == [5]


@pytest.mark.parametrize("fault", ["lose", "swallow"])
async def test_what_is_not_answered_is_published_again_and_stored_once(
    writer: RecordWriter, lossy: Lossy, fault: str
):
    getattr(lossy, fault)(records, times=2)
    await writer.write(RecordKind.DECISIONS, [line()])
    await writer.write(RecordKind.DECISIONS, [line()])
    assert kinds(await stored(lossy.nc)) == [(1, "open"), (2, "decisions"), (3, "decisions")]


async def test_a_full_log_takes_no_number_and_loses_nothing(writer: RecordWriter, nc: Client):
    await fill(nc)
    writer.carry([line(rule="carried")])
    writer.settle(1, 0, Outcome.FAILED)
    report = Report("bob", 9, Outcome.DEAD, 1, "ValueError", 1)
    with pytest.raises(LogFull):
        await writer.write(RecordKind.DECISIONS, [line(rule="own") for _ in range(30)], [report])
    await make_room(nc)
    await writer.write(RecordKind.DECISIONS, [line(rule="next")])
    last = (await stored(nc))[-1]
    assert last.number == 2
    assert [each.rule for each in last.decisions] == ["next", "carried"]
    assert [each.outcome for each in last.settlements] == [Outcome.FAILED]
    assert last.reports == ()  # whose caller was told that it is not recorded, and comes again


async def test_a_number_in_doubt_is_not_given_to_other_content(writer: RecordWriter, lossy: Lossy):
    """The first try may still be on its way when the second is refused for want of room."""
    await fill(lossy.nc)
    lossy.swallow(records)
    first = [line(rule="first") for _ in range(30)]
    writing = asyncio.create_task(writer.write(RecordKind.DECISIONS, first))
    await lossy.happened.wait()
    await asyncio.sleep(0.3)
    assert not writing.done()
    await make_room(lossy.nc)
    await asyncio.wait_for(writing, 5)
    await writer.write(RecordKind.DECISIONS, [line(rule="second")])
    found = await stored(lossy.nc)
    assert [(each.number, each.decisions[0].rule) for each in found[1:]] == [(2, "first"), (3, "second")]


# -- batches that are never answered ----------------------------------------------------------------------
@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_batch_that_never_arrived(writer: RecordWriter, lossy: Lossy, lost: int):
    """Also when the first VOID that takes its place is stored and only its answer is lost."""
    prepared = writer.prepare(RecordKind.DECISIONS, [line(), line()])
    lossy.lose(records, times=lost)
    assert await writer.resolve(prepared) == 0
    await publish_batch(lossy.nc, prepared)  # it comes too late
    assert not [
        m for m in await direct_get_page(lossy.nc, "INBOX", ">", 1) if m.subject.startswith("mas.inbox")
    ]
    await writer.write(RecordKind.DECISIONS, [line()])
    assert kinds(await stored(lossy.nc)) == [(1, "open"), (2, "void"), (3, "decisions")]


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("removed", [False, True], ids=["there", "projected and removed"])
async def test_a_batch_that_did_arrive(writer: RecordWriter, lossy: Lossy, lost: int, removed: bool):
    prepared = writer.prepare(RecordKind.DECISIONS, [line(), line()])
    await publish_batch(lossy.nc, prepared)
    [place] = [m.sequence for m in await direct_get_page(lossy.nc, "INBOX", prepared.subject, 1)]
    if removed:
        await lossy.nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=prepared.subject)
    lossy.lose(records, times=lost)
    assert await writer.resolve(prepared) == place
    await writer.write(RecordKind.MARK)
    last = (await direct_get_page(lossy.nc, "INBOX", "mas.audit.w1i.3", 1))[0]
    assert Record.decode(last.data).previous == digest(prepared.body)


async def test_what_cannot_be_known_ends_the_writer(writer: RecordWriter, lossy: Lossy):
    """The VOID was stored, unanswered, projected and removed before it was published again."""
    prepared = writer.prepare(RecordKind.DECISIONS, [line(), line()])
    lossy.lose(records)
    resolving = asyncio.create_task(writer.resolve(prepared))
    await lossy.happened.wait()
    await lossy.nc.jetstream().purge_stream(subjects.INBOX_STREAM)
    with pytest.raises(LogUnreachable, match="cannot be known"):
        await asyncio.wait_for(resolving, 5)


async def test_no_answer_for_too_long_ends_the_writer(lossy: Lossy):
    lossy.swallow(records, times=1000)
    with pytest.raises(LogUnreachable):
        await publish_until_answered(lossy, "mas.audit.w1i.2", b"", {}, patience=0.3)


# -- how much goes into one record ----------------------------------------------------------------------
def worst() -> DecisionLine:
    call = Call("s" * 63, "send", b"", "", message_id='"' * 500, target="\\" * 500, type="\x01" * 500)
    return line_of(call, "AUTHZ_DENIED", "deny_by_default", "none", "", "f" * 64)


async def test_a_record_stays_below_what_the_server_takes(nc: Client):
    await make_streams(nc)
    writer = RecordWriter(nc, NAMESPACE, "w1i", KEY)
    await writer.write(RecordKind.OPEN)
    writer.carry(worst() for _ in range(3_000))
    for number in range(2_500):
        writer.settle(2**40, number, Outcome.COMMITTED, 2**50)
    room, own = 500_000, []
    while room > 0:
        own.append(worst())
        room -= weight(own[-1])
    prepared = writer.prepare(RecordKind.DECISIONS, own)
    assert len(prepared.body) < 1_000_000
    writer.give_back(prepared, len(own))
    await writer.close()
    found = await stored(nc)
    assert sum(len(record.settlements) for record in found) == 2_500
    assert sum(len(record.decisions) for record in found) == 3_000
    assert found[-1].kind is RecordKind.CLOSE
