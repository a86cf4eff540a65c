"""Whose bytes a stream holds, as far as this worker stored them (ADR 44).

A server says how many messages wait under each subject, and not how large they are. What waits is taken to be
what was stored last: messages leave in the order in which they came.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

ENVELOPE = 500
"""Bytes that a message takes in a stream beside its body, about."""
_BLOCKS = 256
"""Blocks remembered of each name, as bare numbers: a namespace may have thousands of agents."""
_LEAST_BLOCK = 64 << 10


class BytesHeld:
    """Counts in one worker, by name: of an agent, say.

    ``workers``: how many there are, of which each stores about as much as any other. What was stored before
    this one was started it does not know.
    """

    def __init__(self, workers: Callable[[], int]) -> None:
        self._workers = workers
        self._block = _LEAST_BLOCK
        self._sizes: dict[str, _Sizes] = {}

    def reach(self, size: int) -> None:
        """Remember enough to tell the last ``size`` bytes of each."""
        self._block = max(size // _BLOCKS, _LEAST_BLOCK)

    def stored(self, name: str, size: int) -> None:
        """A message with a body of ``size`` bytes was."""
        sizes = self._sizes.get(name)
        if sizes is None:
            sizes = self._sizes[name] = _Sizes()
        sizes.count += 1
        sizes.size += size
        if sizes.size >= self._block:
            sizes.close()

    def of(self, name: str, waiting: int) -> int:
        """Bytes of the last ``waiting`` messages, with their envelopes."""
        if (sizes := self._sizes.get(name)) is None:
            return waiting * ENVELOPE
        workers = self._workers()
        return waiting * ENVELOPE + workers * sizes.last(-(-waiting // workers))


def _numbers() -> array[int]:
    return array("Q")


@dataclass(slots=True)
class _Sizes:
    """Of the messages of one name, in blocks: how many, and their bytes together."""

    count: int = 0
    size: int = 0
    counts: array[int] = field(default_factory=_numbers)  # of full blocks, the oldest first
    sizes: array[int] = field(default_factory=_numbers)

    def close(self) -> None:
        self.counts.append(self.count)
        self.sizes.append(self.size)
        self.count = self.size = 0
        del self.counts[:-_BLOCKS], self.sizes[:-_BLOCKS]

    def last(self, most: int) -> int:
        found = 0
        blocks = zip(reversed(self.counts), reversed(self.sizes), strict=True)
        for count, size in chain(((self.count, self.size),), blocks):
            if count >= most:
                return found + (size * most // count if count else 0)
            found += size
            most -= count
        return found
