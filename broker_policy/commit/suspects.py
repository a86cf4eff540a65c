"""Senders and targets that lately made a batch fail; the slow lane has them until they behave."""

from __future__ import annotations

import time
from collections.abc import Callable

SUSPICION = 5.0
"""Seconds in the slow lane after a sender's last duplicate at most, and after a target's inbox was last full.
One that is read slowly is full again and again: meanwhile it must not fail the batches of others."""
FIRST_SUSPICION = 0.5
"""Seconds after a first duplicate. After a stall of the server many honest senders have one."""
FORGIVEN = 10.0
"""Seconds without suspicion after which a duplicate is a first one again; each until then doubles it."""
_MANY = 1000
"""Senders remembered before those that are forgiven are forgotten."""
FULL_PAUSE = 0.5
"""Seconds during which messages to a full inbox are refused without asking the stream."""


class Suspects:
    """Shared by the lanes of one namespace in one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._senders: dict[str, tuple[float, float]] = {}  # until when, and for how many seconds
        self._targets: dict[str, float] = {}
        self._full: dict[str, float] = {}

    def duplicate(self, sender: str) -> None:
        """``sender`` repeated an id that only the stream knew."""
        now = self._clock()
        until, penalty = self._senders.get(sender, (0.0, 0.0))
        if now >= until + FORGIVEN:
            penalty = FIRST_SUSPICION
        elif now >= until:
            penalty = min(2 * penalty, SUSPICION)
        self._senders[sender] = (now + penalty, penalty)
        if len(self._senders) > _MANY:
            self._senders = {name: each for name, each in self._senders.items() if each[0] + FORGIVEN > now}

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
        return bool(self._full) and self._holds(self._full, target)

    def suspicious(self, sender: str, target: str) -> bool:
        """Whether a message between these two could make a whole batch fail."""
        full_lately = bool(self._targets) and self._holds(self._targets, target)
        return full_lately or (bool(self._senders) and self._suspected(sender))

    def _suspected(self, sender: str) -> bool:
        now = self._clock()
        until, _ = self._senders.get(sender, (now, 0.0))
        if now >= until + FORGIVEN:
            self._senders.pop(sender, None)
        return now < until

    def _holds(self, suspicions: dict[str, float], name: str) -> bool:
        until = suspicions.get(name)
        if until is None:
            return False
        if self._clock() >= until:
            del suspicions[name]
            return False
        return True
