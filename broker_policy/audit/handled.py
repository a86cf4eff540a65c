"""Which messages were handled: those that have left their inbox without anybody having reported why.

Looked at first, settled once the log is projected to its end: a worker writes its report before it removes a
message, so what was gone before and is not reported by then was handled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from nats.aio.client import Client

from broker_policy.audit.inbox_view import Gone, InboxView, Left
from broker_policy.audit.record import Outcome
from broker_policy.audit.settled import Settled, append
from broker_policy.audit.tail import Tail

logger = logging.getLogger(__name__)

SEARCH_EVERY = 5.0
"""Seconds between searches behind an inbox's first message."""
UNDELIVERED_GRACE = 30.0
"""Seconds that a message may be gone before the server says it was delivered. After a crash the server's
word on deliveries is behind until the next one."""
_AGENTS_AT_ONCE = 32
_AT_ONCE = 2000
"""Messages of one append."""
_MOST = 100_000
"""Messages settled by one look: what is written meanwhile waits in the log, and the lease is not renewed."""
_MOST_UNDELIVERED = 100_000
_UNSEEN = "removed from the inbox unseen"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of all inboxes. ``begun``: of which log it was."""

    begun: int
    left: Sequence[Left]
    empty: Sequence[str]  # agents without an open entry


class Handled:
    """Finds out, for one namespace, which messages were handled."""

    def __init__(self, tail: Tail, nc: Client) -> None:
        self._tail = tail
        self._nc = nc
        self._layout = tail.store.layout
        self._views: dict[str, InboxView] = {}
        self._searched = 0.0
        self._undelivered: dict[int, float] = {}  # index -> since when; only searches find all of them

    async def look(self) -> Look:
        """Look at the inboxes of all agents with open entries. Errors as ``Projector.project_once``."""
        begun = self._tail.begun
        [names] = await self._tail.pipeline([("SMEMBERS", self._layout.opened)])
        agents = sorted(name.decode() for name in names)
        now = time.monotonic()
        search = now - self._searched >= SEARCH_EVERY
        if search:
            self._searched = now
        self._views = {
            agent: self._views.get(agent) or InboxView(self._nc, self._layout, agent) for agent in agents
        }
        left: list[Left] = []
        empty: list[str] = []
        for first in range(0, len(agents), _AGENTS_AT_ONCE):
            some = agents[first : first + _AGENTS_AT_ONCE]
            looks = await asyncio.gather(
                *(self._views[agent].left(self._tail, search=search) for agent in some)
            )
            for agent, look in zip(some, looks, strict=True):
                if look is None:
                    empty.append(agent)
                else:
                    left.append(look)
        return Look(begun, left, empty)

    async def settle(self, look: Look) -> int:
        """Write what follows from it; returns how many outcomes. Errors as ``Projector.project_once``."""
        if look.begun != self._tail.begun:
            return 0  # the log was cut off since: its places are given away again
        found = await self._settle_front(look.left)
        found += await self._settle_gone([one for left in look.left for one in left.gone])
        await self._forget(look.empty)
        return found

    async def _settle_front(self, looks: Sequence[Left]) -> int:
        found = 0
        waiting = [left for left in looks if left.handled >= left.first]
        while waiting and found < _MOST:
            await self._tail.refresh()
            draft, settled, room = self._tail.draft(), Settled(), _AT_ONCE
            more: list[Left] = []
            while waiting and room >= _AGENTS_AT_ONCE:
                some, waiting = waiting[:_AGENTS_AT_ONCE], waiting[_AGENTS_AT_ONCE:]
                most = room // len(some)
                for left, indexes in zip(some, await self._listed(some, most), strict=True):
                    if not indexes:
                        continue
                    settled.add_all(indexes, Outcome.HANDLED)
                    draft.command_on_many("ZREM", self._layout.open(left.agent), list(map(str, indexes)))
                    room -= len(indexes)
                    if len(indexes) == most:
                        more.append(left)
                    for index in indexes if self._undelivered else ():
                        self._undelivered.pop(index, None)
            found += await append(self._tail, draft, settled)
            waiting += more
        return found

    async def _listed(self, some: Sequence[Left], most: int) -> list[list[int]]:
        """The indexes, up to ``most`` of each, of what is open of that which was handled."""
        answers = await self._tail.pipeline(
            [
                (
                    *("ZRANGEBYSCORE", self._layout.open(left.agent), left.first, left.handled),
                    *("LIMIT", 0, most),
                )
                for left in some
            ]
        )
        return [list(map(int, members)) for members in answers]

    async def _settle_gone(self, gone: Iterable[Gone]) -> int:
        found = 0
        ready = self._ready(gone)
        while some := list(islice(ready, _AT_ONCE)):
            await self._tail.refresh()
            still = await self._still_open(some)
            draft, settled = self._tail.draft(), Settled()
            closed: dict[str, list[str]] = {}
            for one in still:
                closed.setdefault(one.agent, []).append(str(one.index))
            settled.add_all((one.index for one in still if one.delivered), Outcome.HANDLED)
            unseen = [one for one in still if not one.delivered]
            settled.add_all((one.index for one in unseen), Outcome.UNKNOWN, reason=_UNSEEN)
            for agent, indexes in closed.items():
                draft.command_on_many("ZREM", self._layout.open(agent), indexes)
            found += await append(self._tail, draft, settled)
            for agent, count in sorted(Counter(one.agent for one in unseen).items()):
                logger.warning(
                    "%d messages to %s in %s are gone, and the server knows of no delivery: removed by hand,"
                    " lost with its disk, or handled just before it crashed. Their outcome is unknown",
                    count,
                    agent,
                    self._layout.namespace,
                )
        return found

    async def _still_open(self, some: Iterable[Gone]) -> list[Gone]:
        """Those that were not reported meanwhile, and still followed where they were."""
        by_agent: dict[str, list[Gone]] = {}
        for one in some:
            by_agent.setdefault(one.agent, []).append(one)
        asked = [
            ("ZMSCORE", self._layout.open(agent), *(one.index for one in ones))
            for agent, ones in by_agent.items()
        ]
        answers = await self._tail.pipeline(asked)
        return [
            one
            for ones, scores in zip(by_agent.values(), answers, strict=True)
            for one, score in zip(ones, scores, strict=True)
            if score is not None and int(score) == one.sequence
        ]

    def _ready(self, gone: Iterable[Gone]) -> Iterable[Gone]:
        """Those whose outcome is certain, or will not become more certain."""
        now = time.monotonic()
        ready: list[Gone] = []
        for one in gone:
            if not one.delivered and now - self._undelivered.setdefault(one.index, now) < UNDELIVERED_GRACE:
                continue
            self._undelivered.pop(one.index, None)
            ready.append(one)
        if len(self._undelivered) > _MOST_UNDELIVERED:  # those that were reported since are not seen again
            self._undelivered.clear()
        return iter(ready)

    async def _forget(self, agents: Sequence[str]) -> None:
        if not agents:
            return
        await self._tail.refresh()
        counts = await self._tail.pipeline([("ZCARD", self._layout.open(agent)) for agent in agents])
        draft = self._tail.draft()
        for agent, count in zip(agents, counts, strict=True):
            if not count:
                draft.command("SREM", self._layout.opened, agent)
        if draft.changes_something:
            await self._tail.append(draft)
