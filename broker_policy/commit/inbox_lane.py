"""Group commit of messages: decide what has arrived, then make decisions and messages durable together.

A few messages go as plain publishes, the record of their decisions first; many go as one atomic batch
(ADR-50 of NATS) with the record at its head. On a rejection, which names no message, the batch is
bisected; what is left alone goes to the slow lane, where each message gets an answer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import nats.errors
import orjson
from nats.aio.client import Client

from broker_policy import refusals
from broker_policy.audit.probe import is_probe
from broker_policy.audit.record import DecisionLine, Outcome, RecordKind, Way
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.writer import LogFull, Prepared, RecordWriter, until_answered
from broker_policy.dedup import RecentIds
from broker_policy.jetstream import (
    DUPLICATE_IN_BATCH,
    MESSAGE_LIMIT,
    JetStreamError,
    StoredMessage,
    direct_get,
)
from broker_policy.pipeline.call import Call, Refusal
from broker_policy.sealing import commitment
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Verdict, accepted

log = logging.getLogger(__name__)

MAX_BATCH = 500
"""Messages in a batch; the server's limit is 1000."""
MAX_BATCH_BYTES = 3_500_000
"""Bytes of messages in a batch; the server's limit is 4 MB with headers and record."""
LONE_MAX = 4
"""Up to so many go as plain publishes: an atomic batch costs about 4 ms however small (DESIGN 5)."""
MAX_WAITING = 20_000
MARK_AFTER = 0.5
"""Seconds of rest after which settlements are written and the last record is covered by another."""

Judge = Callable[[Call], "Judged"]
Answer = Callable[[str, bytes], Awaitable[None]]
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


@dataclass(slots=True)
class Judged:
    """A call and what the pipeline says of it."""

    call: Call
    line: DecisionLine
    revision: int
    refusal: Refusal | None = None
    outgoing: Outgoing | None = None


class InboxLane:
    """One commit lane. ``slow``: every message by a plain publish of its own."""

    def __init__(
        self,
        nc: Client,
        writer: RecordWriter,
        *,
        judge: Judge,
        answer: Answer,
        recall: Recall,
        recent: RecentIds,
        suspects: Suspects,
        slow: InboxLane | None,
    ) -> None:
        self._nc = nc
        self._writer = writer
        self._judge = judge
        self._answer = answer
        self._recall = recall
        self._recent = recent
        self._suspects = suspects
        self._slow = slow
        self._waiting: deque[Call] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._full_until = 0.0

    def put(self, call: Call) -> bool:
        """Take a call; False when too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(call)
        self._wake.set()
        return True

    def close(self) -> None:
        """Finish what waits, then end ``run``."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Commit until closed.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        await self._mark(RecordKind.OPEN)
        while not (self._closing and not self._waiting):
            if not self._waiting:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), MARK_AFTER)
                except TimeoutError:
                    if self._writer.owes:
                        await self._mark(RecordKind.MARK)
                continue
            await self._commit_waiting()
        await self._mark(RecordKind.CLOSE)

    async def _mark(self, kind: RecordKind) -> None:
        while True:
            try:
                await self._writer.write(kind)
            except LogFull:
                if kind is not RecordKind.OPEN:
                    return  # the next record will carry it
                await asyncio.sleep(MARK_AFTER)
            else:
                return

    # -- one batch -----------------------------------------------------------------------------------
    async def _commit_waiting(self) -> None:
        told: list[Judged] = []  # decided without touching the stream
        items: list[Judged] = []
        again: list[Call] = []
        in_batch: set[str] = set()
        size = 0
        while self._waiting and len(items) < MAX_BATCH and len(told) < MAX_BATCH and size < MAX_BATCH_BYTES:
            judged = self._judge(self._waiting.popleft())
            outgoing = judged.outgoing
            if outgoing is None:
                told.append(judged)
            elif (known := self._recent.get(outgoing.dedup)) is not None:
                told.append(_repetition(judged, same=known == outgoing.commitment))
            elif outgoing.dedup in in_batch:
                again.append(judged.call)
            elif self._suspects.known_full(judged.call.target):
                told.append(_refused(judged, refusals.inbox_full(judged.call.target)))
            elif self._slow is not None and self._suspects.suspicious(judged.call.sender, judged.call.target):
                await self._to_slow(judged)
            else:
                items.append(judged)
                in_batch.add(outgoing.dedup)
                size += len(outgoing.body) + 1024
        self._waiting.extendleft(reversed(again))
        if time.monotonic() < self._full_until:
            await self._log_full([*told, *items])
        elif told or items:
            await self._commit(told, items)

    async def _commit(self, told: Sequence[Judged], items: Sequence[Judged]) -> None:
        try:
            if not items:
                await self._writer.write(RecordKind.DECISIONS, [j.line for j in told], _revision(told))
            elif len(items) <= LONE_MAX or self._slow is None:
                await self._commit_lone(told, items)
            elif not await self._commit_batch(told, items):
                half = len(items) // 2
                await self._commit(told, items[:half])
                await self._commit((), items[half:])
                return
        except LogFull:
            self._full_until = time.monotonic() + MARK_AFTER
            await self._log_full([*told, *items])
            return
        for judged in told:
            await self._tell(judged)

    async def _commit_batch(self, told: Sequence[Judged], items: Sequence[Judged]) -> bool:
        """Commit all or nothing; False: rejected because of some message that is not named."""
        lines = [replace(judged.line, way=Way.BATCH) for judged in items]
        lines += [judged.line for judged in told]
        prepared = self._writer.prepare(RecordKind.DECISIONS, lines, _revision([*items, *told]))
        try:
            await self._publish_batch(prepared, items)
        except JetStreamError as error:
            self._writer.give_back(prepared, len(lines))
            if error.code == MESSAGE_LIMIT and "per subject" not in error.description:
                raise LogFull from error
            log.info("a batch of %d was rejected (%s), bisecting", len(items), error.description)
            if error.code not in (MESSAGE_LIMIT, DUPLICATE_IN_BATCH):
                log.warning("unexpected rejection of a batch: %s", error)
            return False
        except (nats.errors.Error, OSError) as error:
            log.warning("a batch of %d was not answered (%s)", len(items), type(error).__name__)
            if not await self._writer.resolve(prepared):
                self._writer.give_back(prepared, len(lines))
                return False
        else:
            self._writer.written(prepared)
        for judged in items:
            await self._stored(judged)
        return True

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
                result = orjson.loads(answer.data)
                if error := result.get("error"):
                    raise JetStreamError(int(error["err_code"]), str(error["description"]))

    # -- plain publishes -------------------------------------------------------------------------------
    async def _commit_lone(self, told: Sequence[Judged], items: Sequence[Judged]) -> None:
        lines = [replace(judged.line, way=Way.LONE) for judged in items]
        lines += [judged.line for judged in told]
        prepared = await self._writer.write(RecordKind.DECISIONS, lines, _revision([*items, *told]))
        await asyncio.gather(*(self._publish_lone(prepared, p, judged) for p, judged in enumerate(items)))

    async def _publish_lone(self, prepared: Prepared, position: int, judged: Judged) -> None:
        outgoing, call = judged.outgoing, judged.call
        assert outgoing is not None  # noqa: S101 - items hold accepted messages only
        number = prepared.record.number
        reference = prepared.reference(position)
        try:
            fields = {**outgoing.fields, headers.AUDIT: reference}
            ack = await until_answered(self._nc, outgoing.subject, outgoing.body, fields)
        except JetStreamError as error:
            self._writer.settle(number, position, Outcome.NOT_COMMITTED)
            per_subject = error.code == MESSAGE_LIMIT and "per subject" in error.description
            if per_subject:
                self._suspects.full(call.target)
            refused = _refused(
                judged, refusals.inbox_full(call.target) if per_subject else refusals.log_full()
            )
            self._writer.carry([refused.line])
            await self._tell(refused)
            return
        stored = await self._look(ack.sequence) if ack.duplicate else None
        if not ack.duplicate or (stored is not None and stored.headers.get(headers.AUDIT) == reference):
            self._writer.settle(number, position, Outcome.COMMITTED, ack.sequence)
            self._suspects.has_room(call.target)
            await self._stored(judged)
            return
        # Gone after a try of ours that was not answered: it was ours, or the same id was handled before.
        gone = stored is None and ack.repeated
        self._writer.settle(
            number, position, Outcome.COMMITTED if gone else Outcome.DUPLICATE, ack.sequence if gone else 0
        )
        self._suspects.duplicate(call.sender)
        await self._tell(await self._compare(judged, stored))

    async def _look(self, sequence: int) -> StoredMessage | None:
        while True:
            try:
                return await direct_get(self._nc, subjects.INBOX_STREAM, sequence)
            except (nats.errors.Error, OSError):
                await asyncio.sleep(0.1)

    async def _compare(self, judged: Judged, stored: StoredMessage | None) -> Judged:
        """Tell a repetition of a message the stream knows from another one under its id."""
        outgoing, call = judged.outgoing, judged.call
        assert outgoing is not None  # noqa: S101 - a duplicate was accepted before
        if stored is not None and is_probe(stored.subject):
            refused = _refused(judged, refusals.given_up())
            self._writer.carry([refused.line])
            return refused
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
        told = _repetition(judged, same=known == outgoing.commitment)
        if told.refusal is not None:
            self._writer.carry([told.line])
        return told

    # -- answers -----------------------------------------------------------------------------------------
    async def _to_slow(self, judged: Judged) -> None:
        assert self._slow is not None  # noqa: S101 - the slow lane itself never calls this
        if not self._slow.put(judged.call):
            refused = _refused(judged, refusals.busy())
            self._writer.carry([refused.line])
            await self._tell(refused)

    async def _stored(self, judged: Judged) -> None:
        outgoing = judged.outgoing
        assert outgoing is not None  # noqa: S101 - what is stored was accepted
        self._recent.add(outgoing.dedup, outgoing.commitment)
        await self._reply(judged.call, accepted(judged.call.message_id))

    async def _tell(self, judged: Judged) -> None:
        call = judged.call
        if judged.refusal is not None:
            await self._reply(call, judged.refusal.verdict(call.message_id))
        else:
            await self._reply(call, accepted(call.message_id, duplicate=True))

    async def _log_full(self, judged: Sequence[Judged]) -> None:
        for each in judged:
            refused = _refused(each, refusals.log_full())
            self._writer.carry([refused.line])
            await self._tell(refused)

    async def _reply(self, call: Call, verdict: Verdict) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):  # the sender repeats, under the same id
            await self._answer(call.reply_to, verdict.encode())


def _revision(judged: Sequence[Judged]) -> int:
    return max(each.revision for each in judged)


def _refused(judged: Judged, refusal: Refusal) -> Judged:
    line = replace(judged.line, decision=refusal.decision, rule=refusal.rule, way=Way.NONE, commitment="")
    return Judged(judged.call, line, judged.revision, refusal)


def _repetition(judged: Judged, *, same: bool) -> Judged:
    if same:
        return Judged(judged.call, replace(judged.line, rule="duplicate", way=Way.NONE), judged.revision)
    return _refused(judged, refusals.id_reused())
