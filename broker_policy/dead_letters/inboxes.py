"""Which inboxes there are: by their consumers, and by what lies in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client

from broker_policy.jetstream import api, count_of_each
from mas_nats.wire import subjects


async def waiting(nc: Client) -> dict[str, int]:
    """How many messages lie in the inbox of each agent that has any.

    Raises:
        JetStreamError, nats.errors.Error: no stream, or no answer.

    """
    return await counts(nc, subjects.INBOX_STREAM, subjects.INBOX_SUBJECTS)


async def counts(nc: Client, stream: str, pattern: str) -> dict[str, int]:
    """How many messages of ``stream`` there are for each agent, the last word of the subjects ``pattern``.

    Raises: as ``waiting``.
    """
    found = await count_of_each(nc, stream, pattern)
    return {subject.rpartition(".")[2]: count for subject, count in found.items()}


async def consumers(nc: Client) -> dict[str, dict[str, Any]]:
    """What the server says of each agent's consumer.

    Raises: as ``waiting``.
    """
    return {consumer["name"]: consumer async for consumer in listed(nc)}


async def listed(nc: Client) -> AsyncIterator[dict[str, Any]]:
    """The same one by one, a page of them at a time: of thousands of agents it is many megabytes.

    Raises: as ``waiting``.
    """
    offset = 0
    while True:
        page = await api(nc, f"CONSUMER.LIST.{subjects.INBOX_STREAM}", {"offset": offset})
        some = page.get("consumers") or []
        for consumer in some:
            if consumer["config"].get("filter_subject") == subjects.inbox(consumer["name"]):
                yield consumer
        offset += len(some)
        if not some or offset >= int(page["total"]):
            return
