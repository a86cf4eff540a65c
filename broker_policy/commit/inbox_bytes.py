"""Inboxes that hold more of the log than is left for all others, or too many messages: they take no more.

ADR 44. The number of messages is the server's to limit, but where the limit was lowered: it would delete what
is above it (ADR 11).
"""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client

from broker_policy.bytes_held import BytesHeld
from broker_policy.dead_letters.inboxes import waiting
from mas_nats.policy.shares import most_for_one


class InboxBytes:
    """The inboxes of one namespace, as one worker knows them. ``workers``: how many there are."""

    def __init__(self, nc: Client, workers: Callable[[], int]) -> None:
        self._nc = nc
        self._held = BytesHeld(workers)
        self.over: frozenset[str] = frozenset()
        """The agents whose inbox held too much at the last look."""
        self.full: frozenset[str] = frozenset()
        """The agents whose inbox had too many messages at the last look."""

    def stored(self, agent: str, size: int) -> None:
        """A message with a body of ``size`` bytes lies in the inbox of ``agent``."""
        self._held.stored(agent, size)

    async def look(self, used: int, limit: int, messages: int | None = None) -> None:
        """Find out whose inbox holds more than is free of ``limit`` bytes, of which ``used`` are taken.

        Or ``messages`` of them; None: the server sees to that. Nobody is asked as long as none can.

        Raises:
            JetStreamError, nats.errors.Error: there is no log, or no answer.

        """
        self._held.reach(limit)
        most = most_for_one(used, limit)
        counts = await waiting(self._nc) if most is not None or messages is not None else {}
        self.over = frozenset(
            agent
            for agent, count in counts.items()
            if most is not None and self._held.of(agent, count) > most
        )
        self.full = frozenset(
            agent for agent, count in counts.items() if messages is not None and count >= messages
        )
