"""What is released next: of each sender the oldest, the senders in turn. Neither network nor disk."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delayed message, without its body. Times are unix milliseconds."""

    sender: str
    token: str
    sequence: int
    due: int
    target: str
    type: str = ""
    message_id: str = ""
    sent: int = 0
    size: int = 0


class DueQueue:
    """Delayed messages in the order of their release.

    However many of one sender are due, a message of another waits for one of them at most.
    """

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[int, int, Waiting]]] = {}  # by sender: a heap by time
        self._later: list[tuple[int, str]] = []  # a heap of times and senders, at least one for each sender
        self._turn: deque[str] = deque()  # senders of whom something is due
        self._in_turn: set[str] = set()
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, one: Waiting) -> bool:
        """Add a message; False when it is there already, or was taken and is not ``done``."""
        if one.sequence in self._known:
            return False
        self._known.add(one.sequence)
        self.put_back(one, one.due)
        return True

    def put_back(self, one: Waiting, when: int) -> None:
        """Give back what was taken, to be taken again at ``when`` or later."""
        heap = self._of.setdefault(one.sender, [])
        if not heap or when < heap[0][0]:
            heapq.heappush(self._later, (when, one.sender))
        heapq.heappush(heap, (when, one.sequence, one))

    def done(self, one: Waiting) -> None:
        """Forget what was taken."""
        self._known.discard(one.sequence)

    def take(self, now: int) -> Waiting | None:
        """The next message that is due at ``now``."""
        while self._later and self._later[0][0] <= now:
            _, sender = heapq.heappop(self._later)
            self._queue_up(sender)
        while self._turn:
            sender = self._turn.popleft()
            self._in_turn.discard(sender)
            heap = self._of.get(sender)
            if not heap:
                continue
            if heap[0][0] > now:
                heapq.heappush(self._later, (heap[0][0], sender))
                continue
            _, _, one = heapq.heappop(heap)
            if heap:
                self._queue_up(sender)
            else:
                del self._of[sender]
            return one
        return None

    def next(self) -> int | None:
        """When something is due that is not due yet; None when nothing waits."""
        return self._later[0][0] if self._later else None

    def _queue_up(self, sender: str) -> None:
        if sender not in self._in_turn:
            self._in_turn.add(sender)
            self._turn.append(sender)
