"""Finds messages that nobody will handle any more and that nobody announced (DESIGN 5).

*Exhausted*: the server announces them once, with the pull after the last attempt; a server that dies
meanwhile, a lost advisory, or a flood of them, leaves them in the inbox for ever. While nothing of their
agent is in flight they are told for certain: whatever was delivered once and still lies there will not be
delivered again. While something is, the consumer says how many are in flight but not which; so those that
have been there for long are taken for exhausted when they are as many as are there and not in flight, twice.

*Of removed agents*: what a worker committed after the policy that removed its target had been confirmed,
having judged it before.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client

from broker_policy.commit.answered import UNANSWERED
from broker_policy.dead_letters.inboxes import listed, waiting
from broker_policy.dead_letters.removed import RemovedAgents
from broker_policy.dead_letters.undertaker import EXHAUSTED, UNREPORTED, NoRoom, Undertaker, for_all
from broker_policy.jetstream import StoredMessage, direct_get_page
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

SWEEP_EVERY = 30.0
"""Seconds between two looks; what both of them see is buried."""
_PAGE = 1000
_PAGE_BYTES = 8 << 20
_CUT = 4 << 20
"""Bytes of bodies from which on a page may have been cut: the server counts headers, too."""


class Sweep:
    """Looks through the inboxes of one namespace. Any number of workers may.

    ``removed_agent`` says whether policy, known for certain, lacks an agent; ``every``: seconds.
    """

    def __init__(
        self,
        nc: Client,
        undertaker: Undertaker,
        removed: RemovedAgents,
        *,
        removed_agent: Callable[[str], bool],
        every: float = SWEEP_EVERY,
    ) -> None:
        self._nc = nc
        self._undertaker = undertaker
        self._removed = removed
        self._removed_agent = removed_agent
        self._every = every
        self._seen: set[int] = set()
        self._there: dict[str, frozenset[int]] = {}  # what was delivered to a busy agent, at the last look

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.sweep()
            except NoRoom as full:
                log.warning("messages that nobody will handle stay in their inboxes: %s", full)
            except UNANSWERED as error:
                log.warning("inboxes cannot be swept (%r), trying again", error)
            except Exception:
                log.exception("inboxes cannot be swept, trying again")

    async def sweep(self) -> int:
        """Bury what this look and the one before have seen; returns how many messages.

        Raises:
            NoRoom: the dead letters, or the log, are full.
            JetStreamError, nats.errors.Error: a stream did not answer; call again.

        """
        before, self._seen = self._seen, set()
        buried = 0
        async for consumer in listed(self._nc):
            left = self._again(await self._left_behind(consumer), before)
            left = await self._there_still(consumer["name"], left)
            await for_all(functools.partial(self._exhausted, consumer), left)
            buried += len(left)
        for agent in await waiting(self._nc):
            if self._removed_agent(agent):
                left = self._again(await self._page(agent), before)
                left = await self._there_still(agent, left)
                await for_all(functools.partial(self._removed.bury, agent), left)
                buried += len(left)
        return buried

    def _again(self, found: list[StoredMessage], before: set[int]) -> list[StoredMessage]:
        """Those that the look before has seen too; the others are remembered for the next."""
        self._seen |= {stored.sequence for stored in found}
        return [stored for stored in found if stored.sequence in before]

    async def _there_still(self, agent: str, found: list[StoredMessage]) -> list[StoredMessage]:
        """Without those that only a copy still has which is behind."""
        return [one for one in found if await self._undertaker.find(agent, one.sequence) is not None]

    async def _exhausted(self, consumer: dict[str, Any], stored: StoredMessage) -> None:
        error = await self._undertaker.last_error(stored.sequence) or UNREPORTED
        attempts = max(int(consumer["config"].get("max_deliver", 0)), 0)
        await self._undertaker.bury(
            consumer["name"], stored, reason=EXHAUSTED, attempt=attempts, error=error, failed=True
        )

    async def _left_behind(self, consumer: dict[str, Any]) -> list[StoredMessage]:
        """What was delivered, lies in the inbox, and is not in flight."""
        delivered, in_flight = int(consumer["delivered"]["stream_seq"]), int(consumer["num_ack_pending"])
        if not delivered:
            return []
        page = await self._page(consumer["name"])
        there = [stored for stored in page if stored.sequence <= delivered]
        if not in_flight:
            return there
        before = self._there.get(consumer["name"], frozenset())
        self._there[consumer["name"]] = frozenset(stored.sequence for stored in there)
        whole = len(there) < len(page) or (len(page) < _PAGE and _size(page) < _CUT)
        old = [stored for stored in there if stored.sequence in before]
        return old if whole and len(old) == len(there) - in_flight else []

    async def _page(self, agent: str) -> list[StoredMessage]:
        """The oldest messages in an inbox."""
        return await direct_get_page(
            self._nc,
            subjects.INBOX_STREAM,
            subjects.inbox(agent),
            1,
            batch=_PAGE,
            max_bytes=_PAGE_BYTES,
        )


def _size(page: list[StoredMessage]) -> int:
    return sum(len(stored.data) for stored in page)
