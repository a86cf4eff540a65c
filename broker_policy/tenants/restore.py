"""What a tenant has lost is made again: nats-server forgets what lives in memory when it starts anew.

A worker does this when it connects, after each reconnect and now and then, since who may may also remove a
stream or a consumer by hand. What is there is left as it is: bringing it to new limits is the tenant
controller's, and a worker's policy may be behind it.
"""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client

from broker_policy.jetstream import api
from broker_policy.tenants.streams import (
    AUDIT_GUARD,
    add_missing_stream,
    audit_guard,
    ensure_consumer,
    inbox_consumer,
    tenant_stream_names,
    tenant_streams,
)
from mas_nats.policy.document import Document
from mas_nats.wire import subjects


async def restore(nc: Client, policy: Callable[[], Document | None], copies: int = 1) -> list[str]:
    """Make the streams and consumers that are missing; returns their names.

    ``nc`` is a connection inside the tenant account; ``copies`` is how many nodes keep each stream.

    Raises:
        nats.errors.Error, JetStreamError, nats.js.errors.Error: the server refused, or did not answer; call
            again.

    """
    js = nc.jetstream()
    if (document := policy()) is None:
        return []
    made = await missing_streams(nc, tenant_stream_names())
    if made:
        for config in tenant_streams(document.limits, copies):
            if config.name in made:
                await add_missing_stream(js, config)
    for name in await missing_consumers(nc, policy):
        if (document := policy()) is None:
            break
        await ensure_consumer(
            js, audit_guard() if name == AUDIT_GUARD else inbox_consumer(name, document.limits)
        )
        made.append(name)
    return made


async def missing_streams(nc: Client, wanted: frozenset[str]) -> list[str]:
    """Those of the streams and buckets ``wanted`` that are not there, sorted. Errors as ``restore``."""
    return sorted(wanted - await _names(nc, "STREAM.NAMES", "streams"))


async def missing_consumers(nc: Client, policy: Callable[[], Document | None]) -> list[str]:
    """The consumers that its log should have and has not. Errors as ``restore``.

    Policy is asked for after the server: the consumer of an agent that was removed meanwhile is not missing.
    """
    there = await _names(nc, f"CONSUMER.NAMES.{subjects.INBOX_STREAM}", "consumers")
    document = policy()
    return [] if document is None else sorted({AUDIT_GUARD, *document.agents} - there)


async def _names(nc: Client, subject: str, field: str) -> set[str]:
    names: set[str] = set()
    while True:
        page = await api(nc, subject, {"offset": len(names)})
        found = page.get(field) or []
        names.update(found)
        if not found or len(names) >= int(page["total"]):
            return names
