"""How far back the log knows message ids, and so whether "this id was never stored" can be believed.

nats-server keeps the ids of the duplicate window in memory. One that starts anew knows those of the messages
that lie in the stream then, not those of messages that were handled before (ADR 6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import nats.errors
from nats.aio.client import Client

from broker_policy.embedded.durability import server_variables
from broker_policy.jetstream import stream_info
from mas_nats.wire import subjects

_PATIENCE = 1.0
"""Seconds to wait for servers that do not answer: the one that leads has just answered."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The server that keeps the log now, and since when it runs (unix seconds by its own clock)."""

    server: str
    since: float


Remember = Callable[[], Awaitable[Memory]]
"""Finds it out. Errors as ``memory_of``."""


async def memory_of(nc: Client, observer: Client, nodes: int) -> Memory:
    """Ask which server of ``nodes`` leads the log, over a connection in the tenant, and since when it runs.

    Raises:
        JetStreamError, nats.errors.Error: no answer, or not from that server; ask again later.

    """
    info = await stream_info(nc, subjects.INBOX_STREAM)
    leader = str((info.get("cluster") or {}).get("leader") or "")
    for varz in await server_variables(observer, servers=nodes, timeout=_PATIENCE):
        if leader in ("", varz.get("server_name")):
            return Memory(leader, datetime.fromisoformat(str(varz["start"])).timestamp())
    raise nats.errors.TimeoutError
