"""The time that all workers agree on: that of the NATS server.

A machine's clock may be wrong by seconds or minutes. Deadlines, audit times and the age of keys are judged
by every worker alike all the same: each measures how far its own clock is from the server's, and corrects
itself. The measure comes with what a worker asks anyway (ADR 21).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

log = logging.getLogger(__name__)

_SAMPLES = 16
_NOTICEABLE_MS = 50
"""A smaller difference, or one smaller than the error of its measure, is not corrected."""
_WORRYING_MS = 1_000

Milliseconds = Callable[[], int]


def wall_clock() -> int:
    """This machine's time, unix milliseconds."""
    return time.time_ns() // 1_000_000


class ServerClock:
    """The server's time, unix milliseconds; ``local`` is this machine's clock."""

    def __init__(self, local: Milliseconds = wall_clock) -> None:
        self._local = local
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)  # error, offset
        self._offset = 0
        self._warned = False

    def __call__(self) -> int:
        """The time now."""
        return self._local() + self._offset

    @property
    def offset(self) -> int:
        """Milliseconds that are added to this machine's time."""
        return self._offset

    def local(self) -> int:
        """This machine's time."""
        return self._local()

    def observe(self, stamp: str, asked: int, answered: int) -> None:
        """The server said ``stamp`` (RFC 3339) between the local times ``asked`` and ``answered``."""
        try:
            server = int(datetime.fromisoformat(stamp).timestamp() * 1000)
        except ValueError:
            return
        error, offset = (answered - asked) // 2 + 1, server - (asked + answered) // 2
        if any(abs(offset - other) > _WORRYING_MS + error + sure for sure, other in self._samples):
            self._samples.clear()  # one of the two clocks was set
        self._samples.append((error, offset))
        error, offset = min(self._samples)
        self._offset = offset if abs(offset) > max(_NOTICEABLE_MS, error) else 0
        self._warn(error)

    def _warn(self, error: int) -> None:
        worrying = abs(self._offset) > _WORRYING_MS + error
        if worrying and not self._warned:
            log.warning(
                "this machine's clock is %.1f s %s the NATS server's; corrected here, but set it right",
                abs(self._offset) / 1000,
                "behind" if self._offset > 0 else "ahead of",
            )
        elif self._warned and not worrying:
            log.info("this machine's clock agrees with the NATS server's again")
        self._warned = worrying
