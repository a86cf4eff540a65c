"""More agents than a server takes consumers of a stream where nobody tells it otherwise."""

from __future__ import annotations

import asyncio

from broker_policy.tenants.streams import ensure_inbox_consumer
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from tests.system import System, new_namespace, wanted

MANY = 1_001
"""Beside the two that are there; nats-server 2.15.1 stops at a thousand, unless it is told not to."""


async def test_a_namespace_may_have_a_consumer_for_each_of_a_thousand_agents(system: System):
    namespace = new_namespace()
    await system.apply(wanted(namespace, ["a", "b"], {"a": ["b"]}))
    async with system.tenant(namespace) as nc:
        js = nc.jetstream(timeout=30)
        for first in range(0, MANY, 50):
            names = [f"agent{number}" for number in range(first, min(first + 50, MANY))]
            await asyncio.gather(*(ensure_inbox_consumer(js, name, Limits()) for name in names))
        info = await js.stream_info(subjects.INBOX_STREAM)
        assert info.state.consumer_count >= MANY + 2
