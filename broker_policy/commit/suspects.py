"""Senders and targets that lately made a batch fail; the slow lane has them until they behave."""

from __future__ import annotations

import time
from collections.abc import Callable

SUSPICION = 5.0
"""Seconds a sender stays in the slow lane after its last duplicate."""
FULL_PAUSE = 0.5
"""Seconds during which messages to a full inbox are refused without asking the stream."""


class Suspects:
    """Shared by the lanes of one namespace in one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._senders: dict[str, float] = {}
        self._full: dict[str, float] = {}

    def duplicate(self, sender: str) -> None:
        """``sender`` repeated an id that only the stream knew."""
        self._senders[sender] = self._clock() + SUSPICION

    def full(self, target: str) -> None:
        """The inbox of ``target`` took no more."""
        self._full[target] = self._clock() + FULL_PAUSE

    def has_room(self, target: str) -> None:
        """The inbox of ``target`` took a message again."""
        self._full.pop(target, None)

    def known_full(self, target: str) -> bool:
        """Whether the inbox of ``target`` was full a moment ago."""
        until = self._full.get(target)
        return until is not None and self._clock() < until

    def suspicious(self, sender: str, target: str) -> bool:
        """Whether a message between these two could make a whole batch fail."""
        if target in self._full:
            return True
        until = self._senders.get(sender)
        if until is None:
            return False
        if self._clock() >= until:
            del self._senders[sender]
            return False
        return True
