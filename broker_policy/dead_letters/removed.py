"""The backlog of an agent that is not in the policy any more: moved to the dead letters, all of it.

Whatever lies in its inbox will not be handled: nobody may pull it. Its sender can find it, and an operator
can redrive it to the agent that took its place.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.client import Client

from broker_policy.dead_letters.undertaker import AGENT_REMOVED, Undertaker, for_all
from broker_policy.jetstream import StoredMessage, direct_get_page, get_next
from mas_nats.wire import subjects

UNDELIVERED = "its agent was removed before it was handled"
"""The error of a dead letter of which its agent had reported none."""
_AT_ONCE = 64
_PAGE_BYTES = 8 << 20
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Cleared:
    """How many messages were moved, and whether the inbox was empty then."""

    buried: int
    empty: bool


class RemovedAgents:
    """Clears inboxes of one namespace. ``removed``: whether policy, known for certain, lacks an agent."""

    def __init__(self, nc: Client, undertaker: Undertaker, removed: Callable[[str], bool]) -> None:
        self._nc = nc
        self._undertaker = undertaker
        self._removed = removed

    async def clear(self, agent: str, *, patience: float) -> Cleared:
        """Bury what lies in the inbox of ``agent``, until it is empty or ``patience`` seconds have passed.

        It ends at once, too, when policy has the agent again.

        Raises:
            NoRoom: the dead letters, or the log, are full; what is left stays in the inbox.
            JetStreamError, nats.errors.Error: a stream did not answer; call again.

        """
        ends = time.monotonic() + patience
        buried, first = 0, 1
        while self._removed(agent):
            page = await direct_get_page(
                self._nc,
                subjects.INBOX_STREAM,
                subjects.inbox(agent),
                first,
                batch=_AT_ONCE,
                max_bytes=_PAGE_BYTES,
            )
            if not page:
                if await get_next(self._nc, subjects.INBOX_STREAM, 1, subjects.inbox(agent)) is None:
                    return Cleared(buried, empty=True)
                first = 1  # it was a copy that is behind, or something came meanwhile
                await asyncio.sleep(_PAUSE)
            else:
                await for_all(functools.partial(self.bury, agent), page)
                buried += len(page)
                first = page[-1].sequence + 1
            if time.monotonic() > ends:
                break
        return Cleared(buried, empty=False)

    async def bury(self, agent: str, stored: StoredMessage) -> None:
        """Bury one message of a removed agent.

        Raises: as ``clear``.
        """
        if await self._undertaker.find(agent, stored.sequence) is None:
            return  # only a copy that is behind still has it
        error = await self._undertaker.last_error(stored.sequence) or UNDELIVERED
        await self._undertaker.bury(agent, stored, reason=AGENT_REMOVED, attempt=0, error=error)
