"""The audit of direct state: each change once, after the fact, whichever workers live and die (ADR 10).

Every worker hears every change and keeps it, soon as an audit line, until it is recorded. One of them, named
in the agent's position, records: first the record is acknowledged, then the position moves. When the position
does not move though it should, another worker takes it over. What two of them recorded is entered into the
chain once (``audit/state_marks.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client

from broker_policy.audit.record import DecisionLine, RecordKind
from broker_policy.commit.writer import LogFull, RecordWriter
from broker_policy.direct_state.changes import History, Lines
from broker_policy.direct_state.followed import Followed
from broker_policy.direct_state.hearing import Connect, Hearing
from broker_policy.direct_state.positions import Position, Positions
from broker_policy.jetstream import JetStreamError
from mas_nats.errors import MasError
from mas_nats.policy.table import Table
from mas_nats.wire import subjects
from mas_nats.wire.state_mode import StateMode

log = logging.getLogger(__name__)

TAKE_OVER_AFTER = 1.5
"""Seconds without progress after which another worker takes over."""
GAP_AFTER = 4.0
"""Seconds that a worker which lacks something waits first for one that may have it."""
_TICK = 0.25
_IDLE = 5.0
"""Seconds between two looks where no state is direct; a change of policy is told."""
_PACE = 0.05
"""Seconds between two records, so that a fast agent's changes share them."""
_COVER_AFTER = 0.5
"""Seconds of rest after which the last record is covered by another (ADR 2)."""
_LOOK_AGAIN = 5.0
"""Seconds between two looks for changes that were not heard at all."""
_LET_GO_AFTER = 5.0
"""Seconds for which policy must have said that a state is not direct, before it is not followed any more:
by then what was under way when the agent's account changed has arrived."""
_LINES = 500
_AWAY = (nats.errors.Error, JetStreamError, OSError, MasError)


@dataclass(frozen=True, slots=True)
class _Look:
    """What of one agent was entered or heard, and then was in the bucket: the newest revisions."""

    followed: Followed
    last: int
    known: int
    kept: int


class DirectStateAudit:
    """Audits the direct states of one namespace, as one of its workers.

    ``listen`` opens another connection to the namespace; ``table`` gives its policy, None while there is
    none; ``revision`` the number of that.
    """

    def __init__(
        self,
        nc: Client,
        *,
        listen: Connect,
        worker: str,
        writer: RecordWriter,
        lines: Lines,
        table: Callable[[], Table | None],
        revision: Callable[[], int],
    ) -> None:
        self._nc = nc
        self._hearing = Hearing(listen)
        self._worker = worker
        self._writer = writer
        self._lines = lines
        self._table = table
        self._revision = revision
        self._positions = Positions(nc)
        self._history = History(nc)
        self._followed: dict[str, Followed] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._open = False
        self._told = False  # of positions
        self._started = False
        self._wrote = 0.0
        self._looked = 0.0
        self._reconnects = 0
        self._chosen_by: Table | None = None
        self._direct: set[str] = set()
        self._away = False

    def policy_changed(self) -> None:
        """Look at once whom to follow."""
        self._wake.set()

    def close(self) -> None:
        """Record what is known, then end ``run``."""
        self._closing = True
        self._wake.set()

    async def run(self) -> None:
        """Follow and record until closed.

        Raises:
            LogUnreachable: the log did not answer for minutes.

        """
        try:
            while not await self._turn():
                continue
            await self._end()
        finally:
            await self._hearing.close()

    async def _turn(self) -> bool:
        """One round, and the wait for the next; whether it was the last one."""
        closing = self._closing
        self._wake.clear()
        try:
            if closing:
                await self._hearing.catch_up()
            await self._round()
            self._away = False
        except LogFull:
            await asyncio.sleep(_TICK)  # the changes wait here, and in the bucket
        except _AWAY as error:
            if not self._away:
                log.warning("direct state cannot be followed (%s), trying again", type(error).__name__)
            self._away = True
            await asyncio.sleep(_TICK)
        if closing:
            return True
        if not self._closing:
            await asyncio.sleep(_PACE if self._followed else 0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), _TICK if self._followed else _IDLE)
        return False

    async def _round(self) -> None:
        await self._choose()
        if not self._followed:
            await self._hearing.close()
            return
        await self._look_again()
        for followed in tuple(self._followed.values()):
            await followed.connect(self._history)
            await self._claim(followed)
        while await self._record():
            continue
        await self._cover()

    # -- whom to follow --------------------------------------------------------------------------------
    async def _choose(self) -> None:
        """Follow whose state policy calls direct, and whose changes are not all audited yet."""
        if not self._started:
            await self._begin()
        table = self._table()
        if table is None:
            return
        if table is not self._chosen_by:
            agents = table.document.agents.items()
            self._direct = {name for name, policy in agents if policy.state is StateMode.DIRECT}
            self._chosen_by = table
        direct = self._direct
        for agent in sorted(direct - self._followed.keys()):
            known, entry = await self._positions.get(agent)
            if known is None:
                await self._positions.write(agent, Position(0), entry)  # or another worker did
            await self._follow(agent, known or Position(0))
        now = time.monotonic()
        for agent, followed in tuple(self._followed.items()):
            if agent in direct:
                followed.undeclared = None
            elif followed.undeclared is None:
                followed.undeclared = now
            elif now - followed.undeclared > _LET_GO_AFTER:
                await self._let_go(followed)

    async def _begin(self) -> None:
        if not self._told:
            await self._nc.subscribe(subjects.kv_key(subjects.AUDITED_BUCKET, "*"), cb=self._on_position)
            self._told = True
        for agent, position in (await self._positions.all()).items():
            if agent not in self._followed:  # by an earlier try, which got so far
                await self._follow(agent, position)
        self._started = True

    async def _follow(self, agent: str, position: Position) -> None:
        followed = Followed(agent, self._lines, self._wake.set, me=self._worker, moved=time.monotonic())
        followed.reached(position)
        followed.subscription = await self._hearing.subscribe(subjects.state_changes(agent), followed.hear)
        self._followed[agent] = followed

    async def _let_go(self, followed: Followed) -> None:
        """End the obligation when nothing is left of it."""
        newest = await self._history.newest(followed.agent)
        if not followed.entry:
            if followed.complete and newest == followed.last and not followed.owes:
                await self._take(followed)
        elif newest == followed.position and await self._positions.write(
            followed.agent, None, followed.entry
        ):
            await self._forget(followed)

    async def _forget(self, followed: Followed) -> None:
        if self._followed.pop(followed.agent, None) is not None:  # it is also told what it wrote itself
            await followed.subscription.unsubscribe()

    async def _on_position(self, message: Any) -> None:
        agent = message.subject.rpartition(".")[2]
        followed = self._followed.get(agent)
        if followed is None:
            self._wake.set()
            return
        position = Position.decode(message.data) if message.data else None
        if position is None:
            if followed.undeclared is not None:
                await self._forget(followed)
            return
        if position.worker != self._worker:
            followed.entry = 0
            followed.moved = time.monotonic()
            followed.reached(position)

    # -- what was not heard ------------------------------------------------------------------------------
    async def _look_again(self) -> None:
        """After a lost connection, and now and then in any case, see whether something was missed."""
        reconnects = self._hearing.reconnects
        if reconnects != self._reconnects and await self._hearing.catch_up():
            self._reconnects = reconnects
            for followed in self._followed.values():
                followed.missed()
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN and not self._hearing.away:
            return
        self._looked = now
        looks = [await self._look(followed) for followed in tuple(self._followed.values())]
        if any(look.kept > look.known for look in looks):  # it may be on its way
            await self._hearing.catch_up()
        for look in looks:
            if look.kept < look.last or look.kept > look.followed.newest:
                look.followed.missed()

    async def _look(self, followed: Followed) -> _Look:
        position, _ = await self._positions.get(followed.agent)
        if position is not None and position.worker != self._worker:
            followed.entry = 0
            followed.reached(position)
        last, known = followed.last, followed.newest
        return _Look(followed, last, known, await self._history.newest(followed.agent))

    # -- who records -------------------------------------------------------------------------------------
    async def _claim(self, followed: Followed) -> None:
        now = time.monotonic()
        if followed.entry or not followed.owes:
            followed.moved = now
            return
        patience = TAKE_OVER_AFTER if followed.elsewhere else 0.0
        if followed.gap > followed.position:
            patience = GAP_AFTER
        if now - followed.moved >= patience:
            await self._take(followed)

    async def _take(self, followed: Followed) -> None:
        """Become the worker that records for this agent, unless another is faster."""
        position, entry = await self._positions.get(followed.agent)
        position = Position(position.revision if position else followed.position, self._worker)
        written = await self._positions.write(followed.agent, position, entry)
        followed.moved = time.monotonic()
        if written:
            followed.entry = written
            followed.reached(position)

    async def _record(self) -> bool:
        """Write one record; whether there may be more to write."""
        taken: list[tuple[Followed, int]] = []
        lines: list[DecisionLine] = []
        for followed in self._followed.values():
            if not followed.entry:
                continue
            some, reached = followed.due(_LINES - len(lines))
            if reached > followed.position:
                taken.append((followed, reached))
                lines += some
        if lines:
            if not self._open:
                await self._writer.write(RecordKind.OPEN)
                self._open = True
            await self._writer.write(RecordKind.DECISIONS, lines, revision=self._revision())
            self._wrote = time.monotonic()
            for followed, reached in taken:
                followed.recorded = reached
        await asyncio.gather(*(self._advance(followed, reached) for followed, reached in taken))
        return len(lines) == _LINES

    async def _advance(self, followed: Followed, revision: int) -> None:
        entry, followed.entry = followed.entry, 0  # until it is known to be ours again
        position = Position(revision, self._worker)
        followed.entry = await self._positions.write(followed.agent, position, entry)
        followed.moved = time.monotonic()
        if followed.entry:
            followed.reached(position)

    async def _cover(self) -> None:
        if self._open and self._writer.owes and time.monotonic() - self._wrote > _COVER_AFTER:
            await self._writer.write(RecordKind.MARK)

    # -- the end -------------------------------------------------------------------------------------------
    async def _end(self) -> None:
        with contextlib.suppress(*_AWAY):
            for followed in self._followed.values():
                if followed.entry:  # let another take it at once
                    await self._positions.write(followed.agent, Position(followed.position), followed.entry)
        if self._open:
            with contextlib.suppress(LogFull):
                await self._writer.write(RecordKind.CLOSE)
