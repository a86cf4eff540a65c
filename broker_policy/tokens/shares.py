"""How many marks one agent may leave: no more than stay free for all others.

Counted by each worker for itself, in its memory: what it made, against its part of what the bucket holds. A
worker that was just started knows of none made before; the bucket's own limit bounds those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

_SLOT = 10.0
"""Seconds that are counted together."""


class NoRoom(Exception):
    """An agent has left as many marks as it may, for now."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"no room for {wait:.0f} s")
        self.wait = wait
        """Seconds until some of them are forgotten."""


class Shares:
    """The marks of one namespace by agent. ``most`` are kept by all workers, each for ``age`` seconds.

    However many agents leave what they may, there is room for another one: of ``most`` one alone may leave
    half, two a third each, or the first a half and the second a quarter.
    """

    def __init__(
        self,
        most: int,
        age: float,
        *,
        workers: Callable[[], int] = lambda: 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._age = age
        self._workers = workers
        self._now = now
        self._slots: dict[float, Counter[str]] = {}  # by its end, oldest first
        self._of: Counter[str] = Counter()
        self._total = 0

    @property
    def used(self) -> bool:
        """Whether anybody has left a mark that is kept yet."""
        self._forget()
        return bool(self._slots)

    def require(self, agent: str, count: int) -> None:
        """See whether ``agent`` may leave ``count`` marks.

        Raises:
            NoRoom: it may not.

        """
        self._forget()
        free = self._most // max(1, self._workers()) - self._total
        if self._of[agent] + count > free - count:
            own = (end for end, slot in self._slots.items() if slot[agent])
            oldest = next(own, next(iter(self._slots), self._now()))
            raise NoRoom(max(1.0, oldest + self._age - self._now()))

    def take(self, agent: str, count: int) -> None:
        """Count ``count`` marks that ``agent`` is about to leave.

        Raises:
            NoRoom: it may not.

        """
        self.require(agent, count)
        end = (self._now() // _SLOT + 1) * _SLOT
        self._slots.setdefault(end, Counter())[agent] += count
        self._of[agent] += count
        self._total += count

    def give_back(self, agent: str) -> None:
        """Count one less: it was not left."""
        for slot in reversed(self._slots.values()):
            if slot[agent]:
                slot[agent] -= 1
                self._of[agent] -= 1
                self._total -= 1
                return

    def _forget(self) -> None:
        for end in [each for each in self._slots if each + self._age <= self._now()]:
            slot = self._slots.pop(end)
            self._total -= slot.total()
            self._of -= slot  # who has left nothing that is kept is left out
