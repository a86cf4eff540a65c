"""Decisions whose effect goes elsewhere than the inbox: replies, state writes, what became of messages.

Their record is acknowledged first, many decisions in one, then each act happens on its own (DESIGN 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from broker_policy.audit.record import DecisionLine, Outcome, RecordKind, Report, Way
from broker_policy.commit.inbox_lane import MARK_AFTER
from broker_policy.commit.writer import LogFull, RecordWriter

log = logging.getLogger(__name__)

MAX_GROUP = 500
MAX_WAITING = 20_000


@dataclass(slots=True)
class Act:
    """A decision, or a report, and what to do once it is durable.

    ``perform`` gets the name of the decision's record and says what became of it. It is called with None
    when the log is full: then nothing may be done but telling the caller.
    """

    perform: Callable[[str | None], Awaitable[Outcome]]
    line: DecisionLine | None = None
    revision: int = 0
    report: Report | None = None


class ActLane:
    """One commit lane for acts."""

    def __init__(self, writer: RecordWriter) -> None:
        self._writer = writer
        self._waiting: deque[Act] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._running: set[asyncio.Task[None]] = set()

    def put(self, act: Act) -> bool:
        """Take an act; False when too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(act)
        self._wake.set()
        return True

    async def recorded(self, report: Report) -> bool:
        """Record what became of a message; False when the log is full."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def perform(reference: str | None) -> Outcome:
            if not done.done():
                done.set_result(reference is not None)
            return report.outcome

        return self.put(Act(perform, report=report)) and await done

    def close(self) -> None:
        """Finish what waits, then end ``run``."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Record and perform until closed.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        while True:
            with contextlib.suppress(LogFull):
                await self._writer.write(RecordKind.OPEN)
                break
            await asyncio.sleep(MARK_AFTER)
        while not (self._closing and not self._waiting):
            if self._waiting:
                await self._group()
                continue
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), MARK_AFTER)
                continue
            if self._writer.owes:
                with contextlib.suppress(LogFull):
                    await self._writer.write(RecordKind.MARK)
        await asyncio.gather(*self._running, return_exceptions=True)
        with contextlib.suppress(LogFull):
            await self._writer.write(RecordKind.CLOSE)

    async def _group(self) -> None:
        acts = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
        lines = [act.line for act in acts if act.line is not None]
        reports = [act.report for act in acts if act.report is not None]
        self._writer.report(reports)
        revision = max((act.revision for act in acts if act.line is not None), default=None)
        try:
            kind = RecordKind.DECISIONS if lines else RecordKind.MARK
            prepared = await self._writer.write(kind, lines, revision)
        except LogFull:
            self._writer.carry(
                replace(line, decision="LOG_FULL", rule="log_bytes", way=Way.NONE, commitment="")
                for line in lines
            )
            for act in acts:
                self._start(self._run(act, None, 0, 0))
            return
        position = 0
        for act in acts:
            reference = prepared.reference(position)
            self._start(self._run(act, reference, prepared.record.number, position))
            position += act.line is not None

    def _start(self, running: Awaitable[None]) -> None:
        task = asyncio.ensure_future(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, act: Act, reference: str | None, number: int, position: int) -> None:
        try:
            outcome = await act.perform(reference)
        except Exception:
            log.exception("an act failed after its decision was recorded")
            outcome = Outcome.FAILED
        if act.line is not None and reference is not None and act.line.way is Way.ACT:
            self._writer.settle(number, position, outcome)
