"""Judging ahead: while the server stores a batch, what has arrived meanwhile is judged already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker_policy.commit.gathered import MAX_BATCH, MAX_BATCH_BYTES
from broker_policy.commit.judged import Judged
from mas_nats.policy.call import Call

AT_ONCE = 32
"""Calls that are judged between two looks at whether the batch is stored: a millisecond."""


class Judging(Protocol):
    """The pipeline, as a lane knows it."""

    async def judge_all(self, calls: Sequence[Call]) -> list[Judged]:
        """Judge calls in their order, under one policy; what was let through before is not counted again."""

    @property
    def changes_nothing(self) -> bool:
        """Whether to judge a call leaves everything as it was: nothing is counted, no circuit is tried."""

    def holds(self, judged: Sequence[Judged]) -> bool:
        """Whether what was judged a moment ago would be judged in the same way now."""


class Ahead:
    """What one lane has judged before its turn: a batch at most, and nothing that is counted."""

    def __init__(self, judging: Judging) -> None:
        self._judging = judging
        self._judged: list[Judged] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._judged)

    @property
    def room(self) -> bool:
        """Whether more may be judged ahead."""
        full = len(self._judged) + AT_ONCE > MAX_BATCH or self._size >= MAX_BATCH_BYTES
        return not full and self._judging.changes_nothing

    def add(self, judged: Sequence[Judged]) -> None:
        """Keep what was judged, behind what was judged before."""
        self._judged += judged
        self._size += sum(len(each.call.body) + 1024 for each in judged)

    def take(self) -> list[Judged]:
        """Everything that was judged ahead."""
        judged, self._judged, self._size = self._judged, [], 0
        return judged
