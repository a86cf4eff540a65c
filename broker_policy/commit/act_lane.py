"""Decisions whose effect goes elsewhere than the inbox: replies, state writes, what became of messages.

Their record is acknowledged first, many decisions in one, then each act happens on its own (DESIGN 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from broker_policy.audit.record import DecisionLine, Outcome, RecordKind, Report, Way
from broker_policy.commit.inbox_lane import MARK_AFTER
from broker_policy.commit.lines import weight
from broker_policy.commit.waiting import Waiting
from broker_policy.commit.writer import OWN_BYTES, LogFull, Prepared, RecordWriter
from broker_policy.telemetry.watching import WatchedCall
from mas_nats.wire.verdict import Decision

log = logging.getLogger(__name__)

MAX_GROUP = 500


@dataclass(slots=True)
class Act:
    """A decision, or a report, and what to do once it is durable.

    ``perform`` gets the name of the decision's record and says what became of it. It is called with None
    when the log is full: then nothing may be done but telling the caller. ``sender`` and ``size`` (in bytes)
    say whose room it takes until it has been performed.
    """

    perform: Callable[[str | None], Awaitable[Outcome]]
    line: DecisionLine | None = None
    revision: int = 0
    report: Report | None = None
    sender: str = ""
    size: int = 0
    watched: WatchedCall | None = None


class ActLane:
    """One commit lane for acts. ``at_once``: its writer is opened before there is anything to record."""

    def __init__(self, writer: RecordWriter, *, at_once: bool = True) -> None:
        self._writer = writer
        self._at_once = at_once
        self._waiting: Waiting[Act] = Waiting(lambda act: (act.sender, act.size + 1024))
        self._wake = asyncio.Event()
        self._closing = False
        self._closed = False
        self._running: dict[asyncio.Task[None], Act] = {}

    def put(self, act: Act) -> bool:
        """Take an act; False when too many wait or are under way already, in all or of this sender."""
        if self._closed:
            return False
        if act.watched is not None and act.line is not None:
            act.watched.decided(act.line)
        taken = self._waiting.put(act)
        self._wake.set()
        return taken

    async def recorded(self, report: Report) -> bool:
        """Record what became of a message; False when there is no room for it."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def perform(reference: str | None) -> Outcome:
            if not done.done():
                done.set_result(reference is not None)
            return report.outcome

        return self.put(Act(perform, report=report, sender=report.agent)) and await done

    def close(self) -> None:
        """Finish what waits or is under way, and what that puts here in turn, then end ``run``."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Record and perform until closed.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        try:
            await self._until_closed()
        except asyncio.CancelledError:
            if self._closing:  # it took too long
                for running in self._running:
                    running.cancel()
            raise
        self._closed = True
        if self._writer.opened:
            await self._writer.close()

    async def _until_closed(self) -> None:
        while not self._closing or self._waiting or self._running:
            self._wake.clear()
            if not self._writer.opened and (self._at_once or self._waiting):
                with contextlib.suppress(LogFull):
                    await self._writer.write(RecordKind.OPEN)
            if self._waiting:
                await self._group()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MARK_AFTER if self._writer.owes else None):
                    await self._wake.wait()
                continue
            with contextlib.suppress(LogFull):
                await self._writer.write(RecordKind.MARK)

    async def _group(self) -> None:
        acts: list[Act] = []
        room = OWN_BYTES
        while self._waiting and len(acts) < MAX_GROUP and room > 0:
            acts.append(act := self._waiting.begin())
            room -= weight(act.line) if act.line is not None else 0
        prepared = await self._record(acts)
        if prepared is None:
            self._writer.carry(_not_done(act.line) for act in acts if act.line is not None)
            for act in acts:
                self._start(act, None, 0, 0)
            return
        position = 0
        for act in acts:
            reference = prepared.reference(position)
            self._start(act, reference, prepared.record.number, position)
            position += act.line is not None

    async def _record(self, acts: Sequence[Act]) -> Prepared | None:
        """The record of ``acts``; None when the log is full."""
        if not self._writer.opened:
            return None
        lines = [act.line for act in acts if act.line is not None]
        reports = [act.report for act in acts if act.report is not None]
        revision = max((act.revision for act in acts if act.line is not None), default=None)
        kind = RecordKind.DECISIONS if lines else RecordKind.MARK
        try:
            return await self._writer.write(kind, lines, reports, revision=revision)
        except LogFull:
            return None

    def _start(self, act: Act, reference: str | None, number: int, position: int) -> None:
        task = asyncio.create_task(self._run(act, reference, number, position))
        self._running[task] = act
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._waiting.release(self._running.pop(task))
        if self._closing:
            self._wake.set()

    async def _run(self, act: Act, reference: str | None, number: int, position: int) -> None:
        if act.watched is not None and reference is not None:
            act.watched.recorded(reference)
        try:
            outcome = await act.perform(reference)
        except Exception:
            log.exception("an act failed after its decision was recorded")
            outcome = Outcome.UNKNOWN
        if act.line is not None and reference is not None and act.line.way is Way.ACT:
            self._writer.settle(number, position, outcome)
            self._wake.set()  # it is owed now


def _not_done(line: DecisionLine) -> DecisionLine:
    """The line of an act that the full log prevented; a refusal stays what it is."""
    if line.way is Way.NONE:
        return line
    return line._replace(decision=Decision.LOG_FULL, rule="log_bytes", way=Way.NONE, commitment="")
