"""Group commit of messages: decide what has arrived, then make decisions and messages durable together.

A few messages go as plain publishes behind the record of their decisions; many go as one atomic batch
(ADR-50 of NATS) with the record at its head. On a rejection, which names no message, the batch is
bisected; what is left alone goes to the slow lane, where each message gets an answer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import nats.errors
from nats.aio.client import Client

from broker_policy.audit.probe import is_probe
from broker_policy.audit.record import DecisionLine, Outcome, RecordKind, Way
from broker_policy.commit.answered import MaybeStored, publish_until_answered, until_answered
from broker_policy.commit.behind import Behind, Unacknowledged
from broker_policy.commit.lines import weight
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.waiting import Waiting
from broker_policy.commit.writer import OWN_BYTES, LogFull, Prepared, RecordWriter
from broker_policy.dedup import RecentIds
from broker_policy.jetstream import (
    DUPLICATE_IN_BATCH,
    MESSAGE_LIMIT,
    NO_ROOM,
    Ack,
    JetStreamError,
    StoredMessage,
    checked,
    get_known,
    subject_full,
)
from broker_policy.sealing import commitment
from broker_policy.telemetry.watching import Watch
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.wire import headers, subjects
from mas_nats.wire.subjects import RELEASE
from mas_nats.wire.verdict import Verdict, accepted

log = logging.getLogger(__name__)

MAX_BATCH = 512
"""Messages in a batch; the server's limit is 1000."""
MAX_BATCH_BYTES = 3_500_000
"""Bytes of messages in a batch; the server's limit is 4 MB with headers and record."""
BISECTIONS = 2
"""How often a rejected batch is halved. One bad message is left among an eighth of them then, and many are in
all parts: to publish those one by one, all at once, takes less than to halve on."""
LONE_MAX = 4
"""Up to so many go as plain publishes: an atomic batch costs about 4 ms however small (DESIGN 5)."""
MARK_AFTER = 0.5
"""Seconds of rest after which settlements are written and the last record is covered by another."""

Judge = Callable[[Call], "Judged"]
JudgeAll = Callable[[Sequence[Call]], Awaitable["list[Judged]"]]
"""Judges calls in their order, under one policy; what was let through before is not counted again."""
Answer = Callable[[Call, Verdict], Awaitable[None]]
Probed = Callable[[Call, int], None]
"""Told of each probe where it lies in the inbox, or 0 when it was refused after all."""
Recall = Callable[[str, str], Awaitable[str | None]]


@dataclass(slots=True)
class Outgoing:
    """An accepted message as it will lie in the inbox, but for the name of its decision record."""

    subject: str
    body: bytes
    fields: dict[str, str]
    dedup: str
    commitment: str
    salt: bytes
    earlier: Callable[[], list[str]] = list  # its commitments under other sealing keys

    def repeats(self, known: str) -> bool:
        """Whether ``known`` commits to the same content, maybe from before a rotation of the sealing key."""
        return known == self.commitment or known in self.earlier()


@dataclass(slots=True)
class Judged:
    """A call and what the pipeline says of it."""

    call: Call
    line: DecisionLine
    revision: int
    refusal: Refusal | None = None
    outgoing: Outgoing | None = None


@dataclass(slots=True)
class _Gathered:
    """What the next record will be about."""

    told: list[Judged] = field(default_factory=list)  # decided without touching the stream
    items: list[Judged] = field(default_factory=list)  # messages to store
    again: list[Judged] = field(default_factory=list)  # for the next record
    ids: set[str] = field(default_factory=set)
    size: int = 0
    weight: int = 0

    @property
    def full(self) -> bool:
        """Whether the record or the batch is large enough."""
        longest = max(len(self.told), len(self.items), len(self.again))
        return longest >= MAX_BATCH or self.size >= MAX_BATCH_BYTES or self.weight >= OWN_BYTES

    def add(self, judged: Judged) -> None:
        """Add a message to store, or leave it for the next batch when this one would become too large."""
        outgoing = judged.outgoing
        assert outgoing is not None  # noqa: S101 - only accepted messages are stored
        size = len(outgoing.body) + 1024
        if outgoing.dedup in self.ids or (self.items and self.size + size > MAX_BATCH_BYTES):
            self.again.append(judged)
            self.size += size if outgoing.dedup not in self.ids else 0
            return
        self.items.append(judged)
        self.ids.add(outgoing.dedup)
        self.size += size


class InboxLane:
    """One commit lane. ``slow``: where suspects go; the lane without is that one.

    ``single`` says whether it is certain that one node keeps the log.
    """

    def __init__(
        self,
        nc: Client,
        writer: RecordWriter,
        *,
        judge_all: JudgeAll,
        answer: Answer,
        probed: Probed,
        recall: Recall,
        recent: RecentIds,
        suspects: Suspects,
        slow: InboxLane | None,
        single: Callable[[], bool] = lambda: False,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._nc = nc
        self._writer = writer
        self._judge_all = judge_all
        self._answer = answer
        self._probed = probed
        self._recall = recall
        self._recent = recent
        self._suspects = suspects
        self._behind = Behind(nc, single)
        self._slow = slow
        self._waiting: Waiting[Call] = Waiting(lambda call: (call.sender, len(call.body) + 1024))
        self._wake = asyncio.Event()
        self._closing = False
        self._full_until = 0.0

    def put(self, call: Call) -> bool:
        """Take a call; False when too many wait already, or too many of this sender."""
        taken = self._waiting.put(call)
        self._wake.set()
        return taken

    def close(self) -> None:
        """Finish what waits, then end ``run``."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Commit until closed.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        while not (self._closing and not self._waiting):
            if not self._writer.opened:
                await self._open()
            if self._waiting:
                await self._commit_waiting()
                continue
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), MARK_AFTER if self._writer.owes else None)
            except TimeoutError:
                with contextlib.suppress(LogFull):  # the next record will carry it
                    await self._writer.write(RecordKind.MARK)
        if self._writer.opened:
            await self._writer.close()

    async def _open(self) -> None:
        try:
            await self._writer.write(RecordKind.OPEN)
        except LogFull:
            self._full_until = time.monotonic() + MARK_AFTER

    # -- one batch -----------------------------------------------------------------------------------
    async def _commit_waiting(self) -> None:
        gathered = _Gathered()
        for judged in await self._judged(self._portion()):
            if self._watch is not None and judged.call.watched is not None:
                judged.call.watched.decided(judged.line)
            if gathered.full:
                gathered.again.append(judged)
            else:
                self._place(judged, gathered)
        if not self._writer.opened or time.monotonic() < self._full_until:
            await self._log_full(gathered.told, [*gathered.items, *gathered.again])
            return
        self._waiting.put_back([judged.call for judged in gathered.again])
        if gathered.told or gathered.items:
            await self._commit(gathered.told, gathered.items)

    def _portion(self) -> list[Call]:
        """What is judged together: about as much as a batch holds."""
        portion: list[Call] = []
        size = 0
        while self._waiting and len(portion) < MAX_BATCH and size < MAX_BATCH_BYTES:
            portion.append(call := self._waiting.take())
            size += len(call.body) + 1024
        return portion

    async def _judged(self, calls: Sequence[Call]) -> list[Judged]:
        """Judge them; where that fails each by itself, so that one spoils nobody else's."""
        try:
            return await self._judge_all(calls)
        except Exception:
            if len(calls) > 1:
                return [judged for call in calls for judged in await self._judged([call])]
            (call,) = calls
            log.exception("a %s of %s could not be judged", call.op, call.sender)
            await self._reply(call, refusals.unavailable().verdict(call.message_id))
            return []

    def _place(self, judged: Judged, gathered: _Gathered) -> None:
        outgoing, call = judged.outgoing, judged.call
        gathered.weight += weight(judged.line)
        if outgoing is None:
            gathered.told.append(judged)
        elif (known := self._recent.get(outgoing.dedup)) is not None:
            same = call.errand is not None or outgoing.repeats(known)
            gathered.told.append(_repetition(judged, same=same))
        elif self._suspects.known_full(call.target):
            gathered.told.append(_refused(judged, refusals.inbox_full(call.target)))
        elif self._slow is not None and (call.probe or self._suspects.suspicious(call.sender, call.target)):
            if not self._slow.put(call):
                gathered.told.append(_refused(judged, refusals.busy()))
        else:
            gathered.add(judged)

    async def _commit(self, told: Sequence[Judged], items: Sequence[Judged], *, halved: int = 0) -> None:
        try:
            if not items:
                lines = [judged.line for judged in told]
                prepared = await self._writer.write(RecordKind.DECISIONS, lines, revision=_revision(told))
                self._recorded(prepared, told)
            elif len(items) <= LONE_MAX or self._slow is None or halved > BISECTIONS:
                # Of suspects, and in what was bisected, some are refused: those take all behind them along.
                await self._commit_lone(told, items, behind=self._slow is not None and not halved)
            else:
                match await self._commit_batch(told, items):
                    case _Fate.REJECTED:
                        half = len(items) // 2
                        await self._commit(told, items[:half], halved=halved + 1)
                        await self._commit((), items[half:], halved=halved + 1)
                        return
                    case _Fate.UNANSWERED:  # that took long: policy may be another by now
                        self._waiting.put_back([judged.call for judged in (*items, *told)])
                        return
        except LogFull:
            self._full_until = time.monotonic() + MARK_AFTER
            await self._log_full(told, items)
            return
        for judged in told:
            await self._tell(judged)

    async def _commit_batch(self, told: Sequence[Judged], items: Sequence[Judged]) -> _Fate:
        """Commit all or nothing."""
        self._writer.require_room()
        lines = [judged.line for judged in items]  # which say so
        lines += [judged.line for judged in told]
        prepared = self._writer.prepare(RecordKind.DECISIONS, lines, revision=_revision([*items, *told]))
        begun = time.perf_counter()
        try:
            await self._publish_batch(prepared, items)
        except JetStreamError as error:
            self._writer.give_back(prepared, len(lines))
            if error.code in NO_ROOM and not subject_full(error):
                raise LogFull from error
            log.info("a batch of %d was rejected (%s), bisecting", len(items), error.description)
            if error.code not in (MESSAGE_LIMIT, DUPLICATE_IN_BATCH):
                log.warning("unexpected rejection of a batch: %s", error)
            return _Fate.REJECTED
        except (nats.errors.Error, OSError) as error:
            log.warning("a batch of %d was not answered (%s)", len(items), type(error).__name__)
            if not await self._writer.resolve(prepared):
                self._writer.give_back(prepared, len(lines))
                return _Fate.UNANSWERED
            self._recorded(prepared, [*items, *told])
            # A server that failed in the middle has the record and some messages: make sure of each.
            await self._publish_each(prepared, items, [Unacknowledged.MAYBE_STORED] * len(items))
            return _Fate.STORED
        else:
            self._writer.written(prepared)
        self._recorded(prepared, [*items, *told])
        if self._watch is not None:
            self._watch.batched([each.call.watched for each in items if each.call.watched], begun)
        for judged in items:
            await self._stored(judged)
        return _Fate.STORED

    async def _publish_batch(self, prepared: Prepared, items: Sequence[Judged]) -> None:
        batch = secrets.token_hex(11)
        first = {**prepared.fields, headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: "1"}
        await self._nc.publish(prepared.subject, prepared.body, headers=first)
        last = len(items)
        for position, judged in enumerate(items):
            outgoing = judged.outgoing
            assert outgoing is not None  # noqa: S101 - items hold accepted messages only
            fields = outgoing.fields | {
                headers.AUDIT: prepared.reference(position),
                headers.BATCH_ID: batch,
                headers.BATCH_SEQUENCE: str(position + 2),
            }
            if position + 1 < last:
                await self._nc.publish(outgoing.subject, outgoing.body, headers=fields)
            else:
                fields[headers.BATCH_COMMIT] = "1"
                answer = await self._nc.request(outgoing.subject, outgoing.body, timeout=10, headers=fields)
                checked(answer.data)

    # -- plain publishes -------------------------------------------------------------------------------
    async def _commit_lone(self, told: Sequence[Judged], items: Sequence[Judged], *, behind: bool) -> None:
        """Commit each by itself. ``behind``: right behind their record, where that can be."""
        lines = [judged.line._replace(way=Way.LONE) for judged in items]
        lines += [judged.line for judged in told]
        revision = _revision([*items, *told])
        self._writer.require_room()
        prepared = self._writer.prepare(RecordKind.DECISIONS, lines, revision=revision)
        messages = [judged.outgoing for judged in items if judged.outgoing]
        early = self._behind.publish(prepared, messages) if behind else []
        try:
            await self._writer.put(prepared, len(lines))
        except BaseException:  # without it in the log they are refused, or nobody asks any more
            for each in early:
                each.cancel()
            raise
        found = await asyncio.gather(*early)
        self._recorded(prepared, [*items, *told])
        await self._publish_each(prepared, items, found)

    def _recorded(self, prepared: Prepared, judged: Sequence[Judged]) -> None:
        """Tell who watches, of each in the order of the record."""
        if self._watch is not None:
            for position, each in enumerate(judged):
                if each.call.watched is not None:
                    each.call.watched.recorded(prepared.reference(position))

    async def _publish_each(
        self, prepared: Prepared, items: Sequence[Judged], early: Sequence[Ack | Unacknowledged]
    ) -> None:
        """Publish each message by itself, after its record. ``early``: what is known of each already."""
        known = early or [Unacknowledged.NOT_STORED] * len(items)
        await asyncio.gather(
            *(
                self._publish_lone(prepared, position, judged, one)
                for position, (judged, one) in enumerate(zip(items, known, strict=True))
            )
        )

    async def _publish_lone(
        self, prepared: Prepared, position: int, judged: Judged, early: Ack | Unacknowledged
    ) -> None:
        outgoing, call = judged.outgoing, judged.call
        assert outgoing is not None  # noqa: S101 - items hold accepted messages only
        number = prepared.record.number
        reference = prepared.reference(position)
        try:
            if isinstance(early, Ack):
                ack = early
            else:
                fields = {**outgoing.fields, headers.AUDIT: reference}
                ack = await publish_until_answered(
                    self._nc,
                    outgoing.subject,
                    outgoing.body,
                    fields,
                    repeated=early is Unacknowledged.UNDER_WAY,
                )
        except MaybeStored:
            return  # refused would be a guess: the sender repeats, and the projector finds out
        except JetStreamError as error:
            self._writer.settle(number, position, Outcome.NOT_COMMITTED)
            refusal = refusals.log_full()
            if subject_full(error):
                self._suspects.full(call.target)
                refusal = refusals.inbox_full(call.target)
            refused = _refused(judged, refusal)
            self._writer.carry([refused.line])
            await self._tell(refused)
            return
        stored = await self._look(ack.sequence) if ack.duplicate else None
        if not ack.duplicate or (stored is not None and stored.headers.get(headers.AUDIT) == reference):
            self._writer.settle(number, position, Outcome.COMMITTED, ack.sequence)
            self._suspects.has_room(call.target)
            if call.probe:
                self._probed(call, ack.sequence)
            await self._stored(judged)
            return
        # Gone after a try of ours that was not answered: it was ours, or the same id was handled before.
        gone = stored is None and (ack.repeated or early is Unacknowledged.MAYBE_STORED)
        told = await self._compare(judged, stored)
        # A delayed message that an earlier attempt had stored: only this decision follows it any further.
        gone = gone or (call.op == RELEASE and told.refusal is None)
        self._writer.settle(
            number, position, Outcome.COMMITTED if gone else Outcome.DUPLICATE, ack.sequence if gone else 0
        )
        if not gone and not call.repeated:
            self._suspects.duplicate(call.sender)
        await self._tell(told)

    async def _look(self, sequence: int) -> StoredMessage | None:
        return await until_answered(lambda: get_known(self._nc, subjects.INBOX_STREAM, sequence))

    async def _compare(self, judged: Judged, stored: StoredMessage | None) -> Judged:
        """Tell a repetition of a message the stream knows from another one under its id."""
        outgoing, call = judged.outgoing, judged.call
        assert outgoing is not None  # noqa: S101 - a duplicate was accepted before
        if stored is not None and is_probe(stored.subject):
            refused = _refused(judged, refusals.given_up())
            self._writer.carry([refused.line])
            return refused
        if call.errand is not None:  # nothing but this dead letter can have its dedup id
            return _repetition(judged, same=True)
        if stored is not None:
            fields = stored.headers
            known: str | None = commitment(
                outgoing.salt, fields.get(headers.TARGET, ""), fields.get(headers.TYPE, ""), stored.data
            )
        else:
            known = await self._recall(call.sender, call.message_id)
        if known is None:
            refused = _refused(judged, refusals.cannot_compare())
            self._writer.carry([refused.line])
            return refused
        self._recent.add(outgoing.dedup, known)
        told = _repetition(judged, same=outgoing.repeats(known))
        if told.refusal is not None:
            self._writer.carry([told.line])
        return told

    # -- answers -----------------------------------------------------------------------------------------
    async def _stored(self, judged: Judged) -> None:
        outgoing = judged.outgoing
        assert outgoing is not None  # noqa: S101 - what is stored was accepted
        self._recent.add(outgoing.dedup, outgoing.commitment)
        self._writer.stored(len(outgoing.body))
        await self._reply(judged.call, accepted(judged.call.message_id))

    async def _tell(self, judged: Judged) -> None:
        call = judged.call
        if judged.refusal is not None:
            if call.probe:
                self._probed(call, 0)
            await self._reply(call, judged.refusal.verdict(call.message_id))
        else:
            await self._reply(call, accepted(call.message_id, duplicate=True))

    async def _log_full(self, told: Sequence[Judged], items: Sequence[Judged]) -> None:
        """Refuse what would have to be stored. What needs no room is told as it is: it stays true."""
        refused = [_refused(judged, refusals.log_full()) if judged.outgoing else judged for judged in items]
        for judged in (*told, *refused):
            self._writer.carry([judged.line])
            await self._tell(judged)

    async def _reply(self, call: Call, verdict: Verdict) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # the sender repeats, under the same id
            await self._answer(call, verdict)


class _Fate(Enum):
    """What became of a batch."""

    STORED = 1
    REJECTED = 2  # because of some message that the stream does not name
    UNANSWERED = 3  # and surely not stored


def _revision(judged: Sequence[Judged]) -> int:
    return max(each.revision for each in judged)


def _refused(judged: Judged, refusal: Refusal) -> Judged:
    line = judged.line._replace(decision=refusal.decision, rule=refusal.rule, way=Way.NONE, commitment="")
    return Judged(judged.call, line, judged.revision, refusal)


def _repetition(judged: Judged, *, same: bool) -> Judged:
    if same:
        return Judged(judged.call, judged.line._replace(rule="duplicate", way=Way.NONE), judged.revision)
    return _refused(judged, refusals.id_reused())
