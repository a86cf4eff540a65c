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
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from typing import Any

import nats.errors

from broker_policy.audit.record import RecordKind
from broker_policy.commit.ahead import AT_ONCE, Ahead, Judging
from broker_policy.commit.answers import Answer, Answers, Probed
from broker_policy.commit.behind import Unacknowledged
from broker_policy.commit.gathered import MAX_BATCH, MAX_BATCH_BYTES, Gathered
from broker_policy.commit.inbox_bytes import InboxBytes
from broker_policy.commit.judged import Judged, revision
from broker_policy.commit.lines import weight
from broker_policy.commit.lone import Lone, Recall
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.waiting import Waiting
from broker_policy.commit.writer import LogFull, Prepared, RecordWriter
from broker_policy.dedup import RecentIds
from broker_policy.jetstream import (
    DUPLICATE_IN_BATCH,
    MESSAGE_LIMIT,
    NO_ROOM,
    JetStreamError,
    checked,
    subject_full,
)
from broker_policy.telemetry.watching import Watch
from mas_nats.asking import AskingClient, Published
from mas_nats.policy import refusals
from mas_nats.policy.call import Call
from mas_nats.wire import headers

log = logging.getLogger(__name__)

BISECTIONS = 2
"""How often a rejected batch is halved. One bad message is left among an eighth of them then, and many are in
all parts: to publish those one by one, all at once, takes less than to halve on."""
LONE_MAX = 1
"""Up to so many go as plain publishes, behind a record: an atomic batch costs as much as two or three."""
MARK_AFTER = 0.5
"""Seconds of rest after which settlements are written and the last record is covered by another."""


class InboxLane:
    """One commit lane. ``slow``: where suspects go; the lane without is that one.

    ``single`` says whether it is certain that one node keeps the log.
    """

    def __init__(
        self,
        nc: AskingClient,
        writer: RecordWriter,
        *,
        judging: Judging,
        answer: Answer,
        probed: Probed,
        recall: Recall,
        recent: RecentIds,
        inboxes: InboxBytes,
        suspects: Suspects,
        slow: InboxLane | None,
        single: Callable[[], bool] = lambda: False,
        watch: Watch | None = None,
    ) -> None:
        self._nc = nc
        self._writer = writer
        self._judging = judging
        self._ahead = Ahead(judging)
        self._recent = recent
        self._inboxes = inboxes
        self._suspects = suspects
        self._slow = slow
        self._answers = answers = Answers(writer, answer, probed, recent, inboxes, watch)
        self._lone = Lone(nc, writer, answers, recall=recall, recent=recent, suspects=suspects, single=single)
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
        while self._waiting or self._ahead or not self._closing:
            if not self._writer.opened:
                await self._open()
            if self._waiting or self._ahead:
                await self._commit_waiting()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(MARK_AFTER if self._writer.owes else None):
                    await self._wake.wait()
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
        gathered = Gathered()
        following = await self._next()
        self._answers.decided(following)
        for judged in following:
            if gathered.full:
                gathered.again.append(judged)
            else:
                self._place(judged, gathered)
        if not self._writer.opened or time.monotonic() < self._full_until:
            await self._log_full(gathered.told, [*gathered.items, *gathered.again])
            return
        self._put_back(gathered.again)
        if gathered.told or gathered.items:
            await self._commit(gathered.told, gathered.items)

    async def _next(self) -> list[Judged]:
        """What comes next, judged under the policy of the moment."""
        ahead = self._ahead.take()
        judged = ahead + await self._judged(self._portion(MAX_BATCH - len(ahead)))
        if not ahead or self._judging.holds(judged):
            return judged
        self._put_back(judged)
        return await self._judged(self._portion(MAX_BATCH))

    def _put_back(self, judged: Sequence[Judged]) -> None:
        """Have them judged again: before what has been judged ahead of its turn since."""
        later = self._ahead.take()
        self._waiting.put_back([each.call for each in (*judged, *later)])

    def _portion(self, most: int) -> list[Call]:
        """What is judged together: up to ``most`` calls, and about as many bytes as a batch holds."""
        portion: list[Call] = []
        size = 0
        while self._waiting and len(portion) < most and size < MAX_BATCH_BYTES:
            portion.append(call := self._waiting.take())
            size += len(call.body) + 1024
        return portion

    async def _judged(self, calls: Sequence[Call]) -> list[Judged]:
        """Judge them; where that fails each by itself, so that one spoils nobody else's."""
        try:
            return await self._judging.judge_all(calls)
        except Exception:
            if len(calls) > 1:
                return [judged for call in calls for judged in await self._judged([call])]
            (call,) = calls
            log.exception("a %s of %s could not be judged", call.op, call.sender)
            await self._answers.reply(call, refusals.unavailable().verdict(call.message_id))
            return []

    def _place(self, judged: Judged, gathered: Gathered) -> None:
        outgoing, call = judged.outgoing, judged.call
        gathered.weight += weight(judged.line)
        if outgoing is None:
            gathered.told.append(judged)
        elif (known := self._recent.get(outgoing.dedup)) is not None:
            same = call.errand is not None or outgoing.repeats(known)
            gathered.told.append(judged.repetition(same=same))
        elif call.target in self._inboxes.full or self._suspects.known_full(call.target):
            gathered.told.append(judged.refused(refusals.inbox_full(call.target)))
        elif call.target in self._inboxes.over:
            gathered.told.append(judged.refused(refusals.inbox_bytes(call.target)))
        elif self._slow is not None and (call.probe or self._suspects.suspicious(call.sender, call.target)):
            if not self._slow.put(call):
                gathered.told.append(judged.refused(refusals.busy()))
        else:
            gathered.add(judged)

    async def _commit(self, told: Sequence[Judged], items: Sequence[Judged], *, halved: int = 0) -> None:
        try:
            if not items:
                lines = [judged.line for judged in told]
                prepared = await self._writer.write(RecordKind.DECISIONS, lines, revision=revision(told))
                self._answers.recorded(prepared, told)
            elif len(items) <= LONE_MAX or self._slow is None or halved > BISECTIONS:
                # Of suspects, and in what was bisected, some are refused: those take all behind them along.
                await self._lone.commit(told, items, behind=self._slow is not None and not halved)
            else:
                match await self._commit_batch(told, items):
                    case _Fate.REJECTED:
                        half = len(items) // 2
                        await self._commit(told, items[:half], halved=halved + 1)
                        await self._commit((), items[half:], halved=halved + 1)
                        return
                    case _Fate.UNANSWERED:  # that took long: policy may be another by now
                        self._put_back([*items, *told])
                        return
        except LogFull:
            self._full_until = time.monotonic() + MARK_AFTER
            await self._log_full(told, items)
            return
        for judged in told:
            await self._answers.tell(judged)

    async def _commit_batch(self, told: Sequence[Judged], items: Sequence[Judged]) -> _Fate:
        """Commit all or nothing."""
        self._writer.require_room()
        lines = [judged.line for judged in items]  # which say so
        lines += [judged.line for judged in told]
        prepared = self._writer.prepare(RecordKind.DECISIONS, lines, revision=revision([*items, *told]))
        begun = time.perf_counter()
        try:
            await self._judging_ahead(self._publish_batch(prepared, items))
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
            if not (recorded := await self._writer.resolve(prepared)):
                self._writer.give_back(prepared, len(lines))
                return _Fate.UNANSWERED
            self._answers.recorded(prepared, [*items, *told])
            # A server that failed in the middle has the record and some messages: make sure of each.
            await self._lone.each(prepared, items, [Unacknowledged.MAYBE_STORED] * len(items), recorded)
            return _Fate.STORED
        else:
            self._writer.written(prepared)
        self._answers.recorded(prepared, [*items, *told])
        self._answers.batched(items, begun)
        await self._answers.stored_together(items)
        return _Fate.STORED

    async def _judging_ahead(self, storing: Coroutine[Any, Any, None]) -> None:
        """Await ``storing``, and judge meanwhile what arrives."""
        stored = asyncio.create_task(storing)
        stored.add_done_callback(lambda _: self._wake.set())
        try:
            while not stored.done():
                self._wake.clear()
                if self._waiting and self._ahead.room:
                    self._ahead.add(await self._judged(self._portion(AT_ONCE)))
                    await asyncio.sleep(0)
                else:
                    await self._wake.wait()
        finally:
            stored.cancel()
        await stored

    async def _publish_batch(self, prepared: Prepared, items: Sequence[Judged]) -> None:
        batch = secrets.token_hex(11)
        first = {**prepared.fields, headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: "1"}
        whole = [Published(prepared.subject, prepared.body, first)]
        for position, judged in enumerate(items):
            message = judged.message
            fields = message.fields | {
                headers.AUDIT: prepared.reference(position),
                headers.BATCH_ID: batch,
                headers.BATCH_SEQUENCE: str(position + 2),
            }
            whole.append(Published(message.subject, message.body, fields))
        last = whole.pop()
        last.headers[headers.BATCH_COMMIT] = "1"
        await self._nc.publish_all(whole)
        answer = await self._nc.request(last.subject, last.payload, timeout=10, headers=last.headers)
        checked(answer.data)

    async def _log_full(self, told: Sequence[Judged], items: Sequence[Judged]) -> None:
        """Refuse what would have to be stored. What needs no room is told as it is: it stays true."""
        refused = [judged.refused(refusals.log_full()) if judged.outgoing else judged for judged in items]
        for judged in (*told, *refused):
            self._writer.carry([judged.line])
            await self._answers.tell(judged)


class _Fate(Enum):
    """What became of a batch."""

    STORED = 1
    REJECTED = 2  # because of some message that the stream does not name
    UNANSWERED = 3  # and surely not stored
