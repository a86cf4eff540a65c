"""Has consumers forget the requests for messages that an instance left behind, on several nodes.

A request stays open for half a minute, and nothing takes it back. A node sees whether somebody listens to its
own agents' inboxes only: where another one leads the consumer, a request that was left is given messages
that nobody gets, half of them where one instance asks beside it (nats-server 2.15.1). Open requests are what
a leader keeps to itself, so it steps down: the next one knows of none, and who is there asks anew.
"""

from __future__ import annotations

import asyncio
import logging
import time

from nats.aio.client import Client

from broker_policy.commit.answered import UNANSWERED
from broker_policy.jetstream import JetStreamError, api
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds between two times for the same agent: what its instances do meanwhile is done together."""
_OPEN = 30.0
"""Seconds for which a request is open at most (``mas_nats.pull.EXPIRES``): later there is none to forget."""
_PATIENCE = 1.0
"""Seconds for an answer; who has no leader has no requests."""
_ONE_NODE = frozenset({10006, 10010})
"""No cluster, and so nobody to step down for."""


class LeftRequests:
    """Those of one namespace. ``nc`` is a connection inside the tenant account."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._agents: dict[str, float] = {}  # since when, in their order
        self._asked = asyncio.Event()
        self._alone = False

    def forget(self, agent: str) -> None:
        """Forget what ``agent`` asked for: an instance left, or its connection did."""
        if not self._alone:
            self._agents[agent] = time.monotonic()
            self._asked.set()

    async def run(self) -> None:
        """Do it, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            agents, self._agents = self._agents, {}
            for agent, since in agents.items():
                if time.monotonic() - since < _OPEN:
                    await self._step_down(agent)
            await asyncio.sleep(_PAUSE)

    async def _step_down(self, agent: str) -> None:
        try:
            subject = f"CONSUMER.LEADER.STEPDOWN.{subjects.INBOX_STREAM}.{agent}"
            await api(self._nc, subject, {}, timeout=_PATIENCE)
        except JetStreamError as error:
            self._alone = error.code in _ONE_NODE
            if not self._alone:
                log.info("the consumer of %s does not step down: %s", agent, error)
        except UNANSWERED as error:
            log.info("the consumer of %s does not step down: %r", agent, error)
