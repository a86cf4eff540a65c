"""The newest decisions, read once for all who look, and a stream of those that come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from redis.exceptions import RedisError

from broker_policy.audit.entry import Entry, refuses
from broker_policy.audit.query import Answer
from broker_policy.audit.store import Store, StoredEntry
from broker_policy.ending import end

log = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds over which rates are told."""
_KEPT = 5_000
"""Decisions kept, and entries read at most when many came at once; the oldest of them are then left out."""
_EVERY = 0.25
_QUEUE = 500

Row = dict[str, Any]
Kind = tuple[str, str, bool]
"""A decision, its rule, and whether it refuses."""


class Feed:
    """Follows the chain. ``clock`` returns unix seconds."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._at = 0
        self._recent: deque[Row] = deque(maxlen=_KEPT)
        self._counts: dict[int, Counter[Kind]] = {}  # by the second in which they were made
        self._listeners: set[asyncio.Queue[Row | None]] = set()
        self._away = False

    async def follow(self) -> None:
        """Read on until it is cancelled; while Redis is away it tries again."""
        while True:
            try:
                await self.catch_up()
                self._away = False
            except (RedisError, OSError) as error:
                if not self._away:
                    log.warning("the audit's Redis does not answer: %s", type(error).__name__)
                self._away = True
            await asyncio.sleep(_EVERY)

    async def catch_up(self) -> None:
        """Read what is new. Errors as ``Store.head``."""
        last = (await self._store.head()).index
        if last < self._at:  # Redis was restored from a copy, or emptied
            self._recent.clear()
            self._counts.clear()
            self._at = last
        self._at = max(self._at, last - _KEPT)
        oldest = self._clock() - WINDOW - 1
        self._counts = {second: found for second, found in self._counts.items() if second >= oldest}
        while self._at < last and (page := await self._store.page(self._at + 1)):
            await self._take(page)
            self._at = page[-1].index

    async def _take(self, page: list[StoredEntry]) -> None:
        entries = [(stored, entry) for stored in page if (entry := _decision(stored)) is not None]
        letters = await self._store.outcomes_at([stored.index for stored, _ in entries])
        for (stored, entry), letter in zip(entries, letters, strict=True):
            row = described(Answer(stored.index, entry, letter, stored.hash))
            self._recent.append(row)
            self._count(row)
            for queue in self._listeners:
                _put(queue, row)

    def _count(self, row: Row) -> None:
        second = row["time"] // 1000
        if second >= self._clock() - WINDOW - 1:
            self._counts.setdefault(second, Counter())[row["decision"], row["rule"], row["refused"]] += 1

    def counted(self) -> Counter[Kind]:
        """How many decisions of each kind were made in the last minute, also those that are not kept."""
        last = int(self._clock())
        found: Counter[Kind] = Counter()
        for second in range(last - int(WINDOW) + 1, last + 1):
            found += self._counts.get(second, Counter())
        return found

    def kept(self) -> list[Row]:
        """All decisions that are kept, oldest first."""
        return list(self._recent)

    def per_second(self) -> list[dict[str, int]]:
        """Decisions of each whole second of the last minute, the oldest first."""
        last = int(self._clock())
        return [_of_second(self._counts.get(second, Counter())) for second in range(last - int(WINDOW), last)]

    async def listen(self) -> AsyncGenerator[Row, None]:
        """Decisions as they come, until ``end`` or as long as somebody asks."""
        queue: asyncio.Queue[Row | None] = asyncio.Queue(_QUEUE)
        self._listeners.add(queue)
        try:
            while (row := await queue.get()) is not None:
                yield row
        finally:
            self._listeners.discard(queue)

    def end(self) -> None:
        """Let everybody who listens go."""
        for queue in self._listeners:
            _put(queue, None)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Feed]:
        """Follow in the background."""
        with contextlib.suppress(RedisError, OSError):
            await self.catch_up()
        following = asyncio.create_task(self.follow())
        try:
            yield self
        finally:
            await end([following])


def _of_second(counts: Counter[Kind]) -> dict[str, int]:
    refused = sum(count for kind, count in counts.items() if kind[2])
    return {"allowed": counts.total() - refused, "refused": refused}


def _put(queue: asyncio.Queue[Row | None], row: Row | None) -> None:
    if queue.full():
        queue.get_nowait()  # who is too slow misses the oldest
    queue.put_nowait(row)


def described(answer: Answer) -> Row:
    """One decision as JSON."""
    return {**answer.row(), "refused": refuses(answer.entry)}


def _decision(stored: StoredEntry) -> Entry | None:
    try:
        entry = stored.entry()
    except ValueError:  # damaged: verification names it
        return None
    return entry if entry.get("k") == "d" else None
