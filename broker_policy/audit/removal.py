"""Removing projected records from the log: lazily, by purge, writer by writer.

A prober's records stay for as long as their dedup ids hold: a worker that finds an id taken reads the
message that took it, and must be able to tell a probe from a message that was handled (``probe.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from nats.aio.client import Client

from broker_policy.audit import log
from broker_policy.audit.numbering import Received
from broker_policy.audit.probe import KEEP_PROBES, is_probe
from broker_policy.audit.tail import Tail
from mas_nats.wire import subjects

_MARK_EVERY = 60.0


class Removal:
    """Remembers which writers have projected records in the log."""

    def __init__(self, nc: Client, *, clock: Callable[[], float]) -> None:
        self._nc = nc
        self._clock = clock
        self._patterns: set[str] = set()
        self._began = False
        self._marks: deque[tuple[float, int]] = deque()  # when the projection had reached which sequence

    def projected(self, portion: Iterable[Received]) -> None:
        """These records are in the chain."""
        for received in portion:
            subject = received.stored.subject
            if not is_probe(subject):
                self._patterns.add(subject.rpartition(".")[0] + ".*")

    async def remove(self, tail: Tail) -> int:
        """Remove what is in the chain; returns how many records that were."""
        last = tail.head.sequence
        if not self._began:  # what an earlier projector left
            self._began = True
            for writer in tail.writers:
                subject = subjects.audit_record(writer, 0)
                if not is_probe(subject):
                    self._patterns.add(subject.rpartition(".")[0] + ".*")
        removed = 0
        while self._patterns:
            pattern = self._patterns.pop()
            try:
                removed += await log.remove(self._nc, pattern, last)
            except BaseException:
                self._patterns.add(pattern)
                raise
        return removed + await self._remove_old(last)

    async def _remove_old(self, last: int) -> int:
        """Remove everything that is old enough, probes included."""
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= _MARK_EVERY:
            self._marks.append((now, last))
        removed = 0
        while self._marks and now - self._marks[0][0] > KEEP_PROBES:
            removed += await log.remove(self._nc, subjects.AUDIT_SUBJECTS, self._marks.popleft()[1])
        return removed
