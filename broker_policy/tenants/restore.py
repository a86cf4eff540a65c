"""What a tenant has lost is made again: nats-server forgets what lives in memory when it starts anew.

A worker does this when it connects and after each reconnect, so that nobody has to notice. What is there is
left as it is: bringing it to new limits is the tenant controller's, and a worker's policy may be behind it.
"""

from __future__ import annotations

from nats.aio.client import Client

from broker_policy.jetstream import api
from broker_policy.tenants.streams import (
    AUDIT_GUARD,
    add_missing_stream,
    audit_guard,
    ensure_consumer,
    ensure_inbox_consumer,
    tenant_streams,
)
from mas_nats.policy.document import Document
from mas_nats.wire import subjects


async def restore(nc: Client, document: Document, copies: int = 1) -> list[str]:
    """Make the streams and consumers of ``document`` that are missing; returns their names.

    ``nc`` is a connection inside the tenant account; ``copies`` is how many nodes keep each stream.

    Raises:
        nats.errors.Error, JetStreamError: the server refused, or did not answer; call again.

    """
    js = nc.jetstream()
    made: list[str] = []
    there = await _names(nc, "STREAM.NAMES", "streams")
    for config in tenant_streams(document.limits, copies):
        if config.name not in there:
            await add_missing_stream(js, config)
            made.append(str(config.name))
    there = await _names(nc, f"CONSUMER.NAMES.{subjects.INBOX_STREAM}", "consumers")
    if AUDIT_GUARD not in there:
        await ensure_consumer(js, audit_guard())
        made.append(AUDIT_GUARD)
    for agent in document.agents.keys() - there:
        await ensure_inbox_consumer(js, agent, document.limits)
        made.append(agent)
    return made


async def _names(nc: Client, subject: str, field: str) -> set[str]:
    names: set[str] = set()
    while True:
        page = await api(nc, subject, {"offset": len(names)})
        found = page.get(field) or []
        names.update(found)
        if not found or len(names) >= int(page["total"]):
            return names
