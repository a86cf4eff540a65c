"""Keeps a connection where it can do something: not on a node that is cut off from the others.

Such a node greets, answers pings and takes publishes, and nothing comes of them.
"""

from __future__ import annotations

import asyncio
import logging
import time

import nats.errors

from broker_policy.jetstream import JetStreamError, stream_info
from mas_nats.resilient import ResilientClient

log = logging.getLogger(__name__)

_EVERY = 1.0
_AFTER = 12.0
"""Seconds without the stream's leader after which another node is tried: longer than an election takes."""


async def keep_in_reach(nc: ResilientClient, stream: str, name: str) -> None:
    """Move ``nc`` to another node whenever its own has lost the leader of ``stream``; until cancelled."""
    since = 0.0
    while True:
        await asyncio.sleep(_EVERY)
        try:
            await stream_info(nc, stream, timeout=_EVERY)
        except (nats.errors.Error, JetStreamError, OSError):
            now = time.monotonic()
            since = since or now
            if nc.is_connected and now - since > _AFTER:
                since = 0.0
                log.warning("connection %s: its node does not reach the others, trying another", name)
                await nc.force_reconnect()
        else:
            since = 0.0
