"""The time that all workers agree on: that of the NATS server.

A machine's clock may be wrong by seconds or minutes. Deadlines, audit times and the age of keys are judged
by every worker alike all the same: each measures how far its own clock is from the server's, and corrects
itself. The measure comes with what a worker asks anyway (ADR 21). Between two measures it counts by a clock
that nobody sets, so that a step of the machine's clock moves nothing.
"""

from __future__ import annotations

import logging
import sys
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


def steady_clock() -> Milliseconds:
    """This machine's time as it is now, and from here on what has passed since, unix milliseconds."""
    begun = time.time_ns() - _elapsed()
    return lambda: (begun + _elapsed()) // 1_000_000


def _elapsed() -> int:
    """Nanoseconds since some moment, those included in which the machine slept where that can be told."""
    if sys.platform == "linux":
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


class ServerClock:
    """The server's time, unix milliseconds.

    ``local`` counts on between two measures; ``machine`` is what this machine takes for the time.
    """

    def __init__(self, local: Milliseconds | None = None, machine: Milliseconds = wall_clock) -> None:
        self._local = local or steady_clock()
        self._machine = machine
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)  # error, offset
        self._offset = 0
        self._warned = False

    def __call__(self) -> int:
        """The time now."""
        return self._local() + self._offset

    @property
    def offset(self) -> int:
        """Milliseconds by which the local time is corrected."""
        return self._offset

    def local(self) -> int:
        """The time before it is corrected."""
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
        self._warn(self() - self._machine(), error)

    def _warn(self, apart: int, error: int) -> None:
        worrying = abs(apart) > _WORRYING_MS + error
        if worrying and not self._warned:
            log.warning(
                "this machine's clock is %.1f s %s the NATS server's; corrected here, but set it right",
                abs(apart) / 1000,
                "behind" if apart > 0 else "ahead of",
            )
        elif self._warned and not worrying:
            log.info("this machine's clock agrees with the NATS server's again")
        self._warned = worrying
