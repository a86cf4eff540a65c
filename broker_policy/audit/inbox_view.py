"""Which messages have left an agent's inbox, by looking at the inbox itself.

Not by the consumer's ack floor: that also passes messages whose attempts are used up, while they still wait
in the stream to be dead-lettered (tried on nats-server 2.15).
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from dataclasses import dataclass, field
from itertools import chain, groupby

from nats.aio.client import Client

from broker_policy.audit import log
from broker_policy.audit.layout import Layout
from broker_policy.audit.tail import Tail
from broker_policy.jetstream import JetStreamError, api, next_sequence
from mas_nats.wire import subjects

MOST = 20_000
"""Messages found gone in one look at one agent."""
_PAGE, _PAGE_BYTES = 64, 1 << 20
_PAGES = 16
_MOST_BEHIND = 1_000
_AT_ONCE = 64
_NO_CONSUMER = 10014
_EVERYTHING = 1 << 53
"""A consumer is deleted when its inbox is empty, and what did not leave by the agent was reported dead."""


@dataclass(slots=True)  # not frozen: there are thousands, and frozen ones take three times as long
class Gone:
    """A message that is no longer in the inbox. ``delivered``: the server had handed it to the agent."""

    agent: str
    sequence: int
    index: int
    delivered: bool


@dataclass(frozen=True, slots=True)
class Left:
    """What has left an inbox: all from ``first`` to ``handled``, after they were delivered, and ``gone``.

    What lies before ``first`` was not looked at: a message whose place becomes known later may be there yet.
    """

    agent: str
    first: int  # log sequence
    handled: int = 0  # log sequence; before ``first`` where there is none
    gone: list[Gone] = field(default_factory=list)


@dataclass(slots=True)
class InboxView:
    """What was seen of one agent's inbox.

    Messages before the first one that is still there are gone; that costs one look. Behind it, gone ones
    are only searched now and then: with ``search``, from where the last search ended.
    """

    nc: Client
    layout: Layout
    agent: str
    _cursor: int = field(default=0, init=False)

    async def left(self, tail: Tail, *, search: bool) -> Left | None:
        """What has left the inbox; None when the agent has no open entry at all."""
        oldest = await self._open(tail, "-inf", "+inf", 1)
        if not oldest:
            return None
        # Asked first: what is gone later and was delivered before, is gone by being handled.
        delivered = await self._delivered()
        first = oldest[0][0]
        if delivered < first and not search:
            return Left(self.agent, first)
        front = await self._next(first)
        handled = min(front - 1, delivered)
        gone = await self._open(tail, f"({handled}", f"({front}", MOST) if handled < front - 1 else []
        if search and len(gone) < MOST:
            gone += await self._behind(tail, front, delivered)
        left = [Gone(self.agent, seq, index, seq <= delivered) for seq, index in gone]
        return Left(self.agent, first, handled, left)

    async def _behind(self, tail: Tail, front: int, delivered: int) -> list[tuple[int, int]]:
        first = max(front + 1, self._cursor)
        gone: list[tuple[int, int]] = []
        for _ in range(_PAGES):
            if first > delivered or len(gone) >= _MOST_BEHIND:
                break
            page = await log.read(
                self.nc, first, subjects.inbox(self.agent), most=_PAGE, max_bytes=_PAGE_BYTES
            )
            there = [message.sequence for message in page.messages]
            last = page.messages[-1].sequence if page.pending else delivered
            candidates = await self._open(tail, str(first), str(last), MOST)
            gone += await self._surely(candidates, there)
            first = last + 1
        self._cursor = 0 if first > delivered else first
        return gone

    async def _open(self, tail: Tail, low: str, high: str, most: int) -> list[tuple[int, int]]:
        key = self.layout.open(self.agent)
        [rows] = await tail.pipeline([("ZRANGEBYSCORE", key, low, high, "WITHSCORES", "LIMIT", 0, most)])
        # One flat list, or pairs, as the protocol has it.
        flat = list(chain.from_iterable(rows)) if rows and isinstance(rows[0], tuple | list) else rows
        return list(zip(map(int, map(float, flat[1::2])), map(int, flat[::2]), strict=True))

    async def _surely(self, found: list[tuple[int, int]], there: list[int]) -> list[tuple[int, int]]:
        """Those of ``found`` that are gone, and do not only lack in a copy of the log that is behind.

        ``there`` is what that copy has, ascending. What lacks between two of those is asked for at once.
        """

        async def gone(lacking: list[tuple[int, int]]) -> list[tuple[int, int]]:
            async with limit:
                following = await self._next(lacking[0][0])
            return [pair for pair in lacking if pair[0] < following]

        limit = asyncio.Semaphore(_AT_ONCE)
        have = set(there)
        lacking = [pair for pair in found if pair[0] not in have]
        runs = (list(run) for _, run in groupby(lacking, key=lambda pair: bisect(there, pair[0])))
        return [pair for run in await asyncio.gather(*map(gone, runs)) for pair in run]

    async def _next(self, sequence: int) -> int:
        return await next_sequence(self.nc, subjects.INBOX_STREAM, sequence, subjects.inbox(self.agent))

    async def _delivered(self) -> int:
        try:
            info = await api(self.nc, f"CONSUMER.INFO.{subjects.INBOX_STREAM}.{self.agent}", {})
        except JetStreamError as error:
            if error.code == _NO_CONSUMER:
                return _EVERYTHING
            raise
        return int(info["delivered"]["stream_seq"])
