"""One agent whose state is direct, as one worker follows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from broker_policy.audit.record import DecisionLine
from broker_policy.direct_state.changes import Change, History, Kept, Lines, said
from broker_policy.direct_state.positions import Position
from broker_policy.tenants.streams import STATE_HISTORY

MOST_WAITING = 20_000
"""Changes that wait to be recorded, of one agent; beyond it they are read again later, if they are kept."""
_MOST_READ = 2 * STATE_HISTORY
"""Revisions read in a row: an agent that writes faster than they can be read must not keep others waiting."""
_AT_ONCE = 1 << 16
"""Bytes that are kept as they were heard; from there on lines are made at once."""
_EACH = 500
"""Bytes that a change takes beside what its agent chose."""
_UNKNOWN = -1


@dataclass(slots=True)
class Followed:
    """Every worker holds all changes after the position, so that whichever takes over misses none."""

    agent: str
    lines: Lines
    wake: Callable[[], None]
    me: str = ""  # this worker
    position: int = 0  # audited up to here, as far as this worker knows
    worker: str = ""  # who audits
    entry: int = 0  # of the position, while that is this worker
    last: int = 0  # the newest revision that is known here
    recorded: int = 0  # up to here this worker has recorded, though the position may not say so
    moved: float = 0.0  # when the position last moved, or there was nothing to do (monotonic seconds)
    gap: int = 0  # the newest revision before which something is missing here
    undeclared: float | None = None  # since when policy no longer says that this state is direct
    subscription: Any = None
    _changes: deque[Change] = field(default_factory=deque)
    _heard: deque[Change] = field(default_factory=deque)
    _fresh: list[tuple[Kept, int, str]] = field(default_factory=list)  # heard, and not looked at yet
    _fresh_bytes: int = 0
    _anew: bool = False  # the first revision of a bucket was heard, and others are known
    _missed: int = 1  # counts the reasons to read
    _read_for: int = 0  # how many of them were there before the last reading

    async def hear(self, message: Any) -> None:
        """Take what the server says again.

        Its line waits for a moment: one that another worker has recorded by then is not needed here, and
        whoever wrote the change waits for the processor now.
        """
        heard = said(message)
        if heard is None or len(self._heard) + len(self._fresh) >= MOST_WAITING:
            self.missed()
        else:
            kept, previous = heard
            if not previous and self.last:
                self._anew = True
                self.missed()
            self._fresh.append((kept, previous, self.lines.fingerprint(self.agent)))
            self._fresh_bytes += len(kept.body) + len(kept.mark) + _EACH
            if self._fresh_bytes > _AT_ONCE:
                self._make_lines()
        if not self.elsewhere:  # looked at now and then: by then less is left to do
            self.wake()

    @property
    def elsewhere(self) -> bool:
        """Whether another worker records, as far as this one knows."""
        return self.worker not in ("", self.me)

    @property
    def newest(self) -> int:
        """The newest revision that was heard or is known."""
        if self._fresh:
            return self._fresh[-1][0].revision
        return self._heard[-1].revision if self._heard else self.last

    def missed(self) -> None:
        """Something may not have been heard: read what is kept."""
        self._missed += 1

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return self._read_for == self._missed and not self._heard and not self._fresh

    def reached(self, position: Position) -> None:
        """Some worker has audited up to ``position``."""
        self.position, self.worker = position.revision, position.worker
        while self._changes and self._changes[0].revision <= self.position:
            self._changes.popleft()
        self.last = max(self.last, self.position)

    async def connect(self, history: History) -> None:
        """Join what was heard to what was known; what is missing between is read, once in a call.

        Raises:
            JetStreamError, nats.errors.Error: the bucket did not answer; call again.

        """
        self._join()
        if self._heard:
            self.missed()
        if self._read_for != self._missed:
            missed = self._missed
            await self._read(history)
            self._read_for = missed
            self._join()
        if len(self._changes) > MOST_WAITING:
            self._changes.clear()
            self.last = max(self.position, self.recorded)
            self.missed()

    @property
    def owes(self) -> bool:
        """Whether there is something to record, or the position has to move."""
        return bool(self._changes) and self._changes[-1].revision > self.position

    def due(self, most: int) -> tuple[list[DecisionLine], int]:
        """Up to ``most`` lines to record, and the revision that they reach to."""
        lines: list[DecisionLine] = []
        reached = max(self.position, self.recorded)
        for change in self._changes:
            if change.revision <= reached:
                continue
            if len(lines) + len(change.lines) > most:
                break
            lines += change.lines
            reached = change.revision
        return lines, reached

    def _make_lines(self) -> None:
        fresh, self._fresh, self._fresh_bytes = self._fresh, [], 0
        for kept, previous, fingerprint in fresh:
            if self._heard or kept.revision > self.last:
                self._heard.append(self.lines.change(self.agent, kept, previous, fingerprint))

    def _join(self) -> None:
        self._make_lines()
        while self._heard and self._heard[0].revision <= self.last:
            self._heard.popleft()
        while self._heard and self._heard[0].previous == self.last:
            self._add(self._heard.popleft())

    def _add(self, change: Change) -> None:
        self._changes.append(change)
        self.last = change.revision

    # -- reading -------------------------------------------------------------------------------------
    async def _read(self, history: History) -> None:
        """Read what is kept after ``last``, and find out what is not kept any more."""
        if await history.newest(self.agent) < self.last or self._anew:
            # The bucket was made anew, and counts from one. What is in the chain is not entered twice.
            self._anew = False
            self._changes.clear()
            self.last = self.position = self.recorded = 0
        first = await history.first(self.agent, self.last + 1)
        if first is None:
            return
        oldest = await history.first(self.agent) if self.last else None
        joined = oldest is not None and oldest.revision <= self.last
        kept = [first]
        unbroken: set[int] = set()
        while following := await history.first(self.agent, kept[-1].revision + 1):
            kept.append(following)
            if len(kept).bit_count() == 1:
                unbroken |= await self._unbroken(history, kept)
            if len(kept) == _MOST_READ:
                self.missed()
                break
        unbroken |= await self._unbroken(history, kept)
        if self.last:
            self._take(kept, unbroken, self.last if joined else _UNKNOWN, lost=not joined)
        elif len(kept) < STATE_HISTORY:
            self._take(kept, unbroken, 0, lost=False)
        else:  # a state that was mediated until now begins with what a worker wrote, on top of what it said
            begun = not self.lines.change(self.agent, first, first.claimed).lines
            self._take(kept, unbroken, first.claimed if begun else _UNKNOWN, lost=not begun)

    async def _unbroken(self, history: History, kept: list[Kept]) -> set[int]:
        """Which revisions surely come right after the one that was read before them.

        The oldest leave first. So nothing was between two when the earlier is there after both were read.
        Asked now and then while reading: an agent that writes meanwhile pushes out the oldest.
        """
        oldest = await history.first(self.agent)
        if oldest is None:
            return set()
        return {after.revision for before, after in pairwise(kept) if before.revision >= oldest.revision}

    def _take(self, kept: list[Kept], unbroken: set[int], previous: int, *, lost: bool) -> None:
        """Add what was read after revision ``previous``; ``lost``: something before it is not kept any more.

        Between two that are not in ``unbroken`` something may have been lost too, so a gap is named between
        any such two: a gap that spans what was read counts as known where that is in the chain.
        """
        before = self.last
        for each in kept:
            if each is not kept[0]:
                lost = each.revision not in unbroken
                previous = _UNKNOWN if lost else before
            if each.revision == before + 1:  # all states of a namespace are counted together
                lost, previous = False, before
            change = self.lines.change(self.agent, each, previous)
            if lost:
                gap = self.lines.gap(self.agent, before, each)
                change = Change(change.revision, before, (gap, *change.lines))
                self.gap = change.revision
            self._add(change)
            before = each.revision
