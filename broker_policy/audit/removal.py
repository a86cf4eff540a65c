"""Removing projected records from the log: lazily, by purge, writer by writer.

A writer's last record stays: its worker may still be waiting for an answer to it, and will publish something
under its dedup id again. A server that starts anew knows the ids of what lies in the stream, and no others.

A prober's records stay for as long as their dedup ids hold: a worker that finds an id taken reads the
message that took it, and must be able to tell a probe from a message that was handled (``probe.py``).

What is remembered is where records lie, so it holds for one log only: a log that was made anew gives the same
places to records that nobody has projected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from nats.aio.client import Client

from broker_policy.audit import log
from broker_policy.audit.numbering import Received
from broker_policy.audit.probe import KEEP_PROBES, is_probe
from broker_policy.audit.tail import Tail
from broker_policy.jetstream import get_last
from mas_nats.wire import subjects

_MARK_EVERY = 60.0


class Removal:
    """Remembers which writers have projected records in the log."""

    def __init__(self, nc: Client, *, clock: Callable[[], float]) -> None:
        self._nc = nc
        self._clock = clock
        self._newest: dict[str, int] = {}  # of each writer with records to remove: where its last one lies
        self._began = False
        self._marks: deque[tuple[float, int]] = deque()  # when the projection had reached which sequence

    def forget(self) -> None:
        """Begin again: the log was made anew, or may have been."""
        self._newest.clear()
        self._marks.clear()
        self._began = False

    def projected(self, portion: Iterable[Received]) -> None:
        """These records are in the chain."""
        for received in portion:
            subject = received.stored.subject
            if not is_probe(subject):
                self._newest[_records_of(subject)] = received.stored.sequence

    async def remove(self, tail: Tail) -> int:
        """Remove what is in the chain; returns how many records that were. Errors as ``project_once``."""
        if not self._has_work() or not await self._has_log(tail):
            return 0
        last = tail.head.sequence
        if not self._began:  # what an earlier projector left
            for writer, state in tail.writers.items():
                subject = subjects.audit_record(writer, state.number)
                if is_probe(subject):
                    continue
                newest = await get_last(self._nc, subjects.INBOX_STREAM, subject)
                self._newest.setdefault(_records_of(subject), newest.sequence if newest else last + 1)
            self._began = True
        removed = 0
        while self._newest:
            pattern, newest_at = self._newest.popitem()
            try:
                removed += await log.remove(self._nc, pattern, newest_at - 1)
            except BaseException:
                self._newest.setdefault(pattern, newest_at)
                raise
        return removed + await self._remove_old(last)

    def _has_work(self) -> bool:
        return not self._began or bool(self._newest) or self._mark_due()

    def _mark_due(self) -> bool:
        return not self._marks or self._clock() - self._marks[-1][0] >= _MARK_EVERY

    async def _has_log(self, tail: Tail) -> bool:
        """Whether the log that is there is the one whose records are in the chain up to the head.

        Where it is another, nothing of it is projected until the projector has noticed, and has this forget.
        """
        if not self._began:
            tail.forget()
            await tail.refresh()
        end = await log.end(self._nc)
        return tail.head.made in (0, end.made) and end.sequence >= tail.head.sequence

    async def _remove_old(self, last: int) -> int:
        """Remove everything that is old enough, probes included."""
        if not self._mark_due():
            return 0
        now = self._clock()
        self._marks.append((now, last))
        removed = 0
        while self._marks and now - self._marks[0][0] > KEEP_PROBES:
            removed += await log.remove(self._nc, subjects.AUDIT_SUBJECTS, self._marks.popleft()[1])
        return removed


def _records_of(subject: str) -> str:
    """All records of the writer of one."""
    return subject.rpartition(".")[0] + ".*"
