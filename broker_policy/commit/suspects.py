"""Senders and targets that lately made a batch fail; the slow lane has them until they behave."""

from __future__ import annotations

import time
from collections.abc import Callable

SUSPICION = 5.0
"""Seconds in the slow lane after a sender's last duplicate, and after a target's inbox was last full. One
that is read slowly is full again and again: meanwhile it must not fail the batches of others."""
FULL_PAUSE = 0.5
"""Seconds during which messages to a full inbox are refused without asking the stream."""


class Suspects:
    """Shared by the lanes of one namespace in one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._senders: dict[str, float] = {}  # until when
        self._targets: dict[str, float] = {}
        self._full: dict[str, float] = {}

    def duplicate(self, sender: str) -> None:
        """``sender`` repeated an id that only the stream knew."""
        self._senders[sender] = self._clock() + SUSPICION

    def full(self, target: str) -> None:
        """The inbox of ``target`` took no more."""
        now = self._clock()
        self._full[target] = now + FULL_PAUSE
        self._targets[target] = now + SUSPICION

    def has_room(self, target: str) -> None:
        """The inbox of ``target`` took a message again."""
        self._full.pop(target, None)

    def known_full(self, target: str) -> bool:
        """Whether the inbox of ``target`` was full a moment ago."""
        return self._holds(self._full, target)

    def suspicious(self, sender: str, target: str) -> bool:
        """Whether a message between these two could make a whole batch fail."""
        return self._holds(self._targets, target) or self._holds(self._senders, sender)

    def _holds(self, suspicions: dict[str, float], name: str) -> bool:
        until = suspicions.get(name)
        if until is None:
            return False
        if self._clock() >= until:
            del suspicions[name]
            return False
        return True
