"""Editing an audit as somebody could who can write to Redis."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from broker_policy.audit.store import Store


async def a_decision(redis: Redis, namespace: str) -> int:
    """The index of a send, once it is in the chain."""
    store = Store(redis, namespace)
    async with asyncio.timeout(60):
        while True:
            for stored in await store.page(1):
                if stored.entry().get("o") == "send":
                    return stored.index
            await asyncio.sleep(0.05)


async def edit(redis: Redis, namespace: str, index: int) -> None:
    """Change who sent the message of entry ``index``, with hashes and everything else left as they are."""
    store = Store(redis, namespace)
    raw: Any = redis
    entries = [each async for each in store.entries(1)]
    async with raw.pipeline(transaction=True) as pipe:
        pipe.delete(store.layout.chain)
        for each in entries:
            body = each.body.replace(b'"asker"', b'"other"') if each.index == index else each.body
            pipe.xadd(store.layout.chain, {"e": body, "h": each.hash}, id=each.identifier)
        await pipe.execute()
