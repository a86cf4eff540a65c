"""Delayed messages on three nodes, while the streams they lie in change their leaders and a node dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mas_nats.wire import subjects
from tests.cluster.conftest import Cluster
from tests.load import UNSURE, Handling
from tests.processes import kill

MESSAGES = 90
STREAMS = (subjects.DELAYED_STREAM, subjects.CLAIMS_STREAM, subjects.INBOX_STREAM)
T = TypeVar("T")


async def until_sure(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat until there is an answer."""
    while True:
        try:
            return await ask()
        except UNSURE:
            await asyncio.sleep(0.05)


async def test_released_or_cancelled_under_changing_leaders(cluster: Cluster) -> None:
    namespace = await cluster.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    url = cluster.broker.url
    cancelled: set[str] = set()
    async with (
        Handling("sender", server_addr=url, tls=cluster.tls("sender", namespace)) as sender,
        Handling("receiver", server_addr=url, tls=cluster.tls("receiver", namespace)) as receiver,
        cluster.tenant(namespace) as tenant,
    ):

        async def send(number: int) -> None:
            name, delay = f"m{number}", 0.5 + 0.05 * number
            await until_sure(lambda: sender.send("receiver", "work", {}, id=name, delay=delay))
            if number % 6 == 0 and await until_sure(lambda: sender.cancel(name)):
                cancelled.add(name)

        sending = asyncio.gather(*(send(number) for number in range(MESSAGES)))
        for stream in STREAMS:
            seen = len(receiver.handled)
            async with asyncio.timeout(30):
                while len(receiver.handled) < seen + MESSAGES // 6:
                    await asyncio.sleep(0.02)
            await tenant.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", timeout=5)
        kill(cluster.broker.pid, "nats-2")
        await sending
        names = {f"m{number}" for number in range(MESSAGES)}
        assert await receiver.wait_handled(names - cancelled, 60) == set()
    assert cancelled
    assert not cancelled & receiver.handled.keys()
