"""What waits for a lane, or is under way: bounded in number and in bytes, for all senders and for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MOST = 20_000
MOST_BYTES = 128 << 20
SHARE = 4
"""One sender may take a quarter of the room, so that its flood leaves some to the others."""

T = TypeVar("T")


@dataclass(slots=True)
class _Share:
    """The room that one sender takes."""

    items: int = 0
    bytes: int = 0


class Waiting(Generic[T]):
    """A queue in the order of arrival. ``weigh`` says whose an item is and how many bytes it holds.

    An item takes room until it is taken, or, where it was begun, until it is released.
    """

    def __init__(
        self, weigh: Callable[[T], tuple[str, int]], *, most: int = MOST, most_bytes: int = MOST_BYTES
    ) -> None:
        self._weigh = weigh
        self._most = most
        self._most_bytes = most_bytes
        self._queue: deque[tuple[T, str, int]] = deque()
        self._items = 0
        self._bytes = 0
        self._of: dict[str, _Share] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, item: T) -> bool:
        """Take ``item``; False when there is no room for it."""
        sender, size = self._weigh(item)
        if self._items >= self._most or self._bytes + size > self._most_bytes:
            return False
        share = self._of.get(sender) or _Share()
        if share.items * SHARE >= self._most or (share.bytes + size) * SHARE > self._most_bytes:
            return False
        self._queue.append((item, sender, size))
        self._add(sender, share, size)
        return True

    def take(self) -> T:
        """The oldest item."""
        item, sender, size = self._queue.popleft()
        self._give_up(sender, size)
        return item

    def begin(self) -> T:
        """The oldest item, which goes on taking room until it is given to ``release``."""
        return self._queue.popleft()[0]

    def release(self, item: T) -> None:
        """Free the room of what was begun."""
        self._give_up(*self._weigh(item))

    def put_back(self, items: Sequence[T]) -> None:
        """Give back what was taken, in its order and before everything else, whatever room there is."""
        for item in reversed(items):
            sender, size = self._weigh(item)
            self._queue.appendleft((item, sender, size))
            self._add(sender, self._of.get(sender) or _Share(), size)

    def _add(self, sender: str, share: _Share, size: int) -> None:
        share.items += 1
        share.bytes += size
        self._items += 1
        self._bytes += size
        self._of[sender] = share

    def _give_up(self, sender: str, size: int) -> None:
        share = self._of[sender]
        share.items -= 1
        share.bytes -= size
        self._items -= 1
        self._bytes -= size
        if not share.items:
            del self._of[sender]
