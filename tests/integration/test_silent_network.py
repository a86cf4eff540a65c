"""Connections that stay open and carry nothing any more: found out by those who use them, and left.

A cable that is pulled, a firewall that forgets, a machine that dies: no end of the connection arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker_policy.worker import WorkerConfig
from mas_nats.errors import MasError
from tests.load import Handling, audit_of, send_all
from tests.parts import Parts, parts
from tests.silent_proxy import SilentProxy, silent_proxy
from tests.system import mas

pytestmark = pytest.mark.slow
BOUND = 20.0
"""Seconds within which who uses a connection has another: twice what pings need, for a busy machine."""
ACK_WAIT = 30.0
GIVEN_UP = 33.0
"""Seconds after which the server sends no call any more to a worker of which it has heard nothing."""


@dataclass
class Links:
    """A broker with one worker, and a proxy on every way into a server."""

    up: Parts
    worker: SilentProxy
    redis: SilentProxy
    sender: SilentProxy
    receiver: SilentProxy


@pytest.fixture
async def links(tmp_path: Path) -> AsyncIterator[Links]:
    async with contextlib.AsyncExitStack() as after, parts(tmp_path, workers=0) as up:
        nats = urlsplit(up.broker.url).port or 0
        ports = nats, up.redis_server.port, nats, nats
        found = Links(up, *[await after.enter_async_context(silent_proxy(port)) for port in ports])
        config = WorkerConfig.embedded(up.layout, "w1")
        redis = config.redis_url.replace(f":{up.redis_server.port}", f":{found.redis.port}")
        endpoint = replace(config.endpoint, url=found.worker.url)
        await up.start_worker(endpoint=endpoint, redis_url=redis)
        yield found


@pytest.mark.parametrize("link", ["worker", "redis", "sender", "receiver"])
async def test_a_connection_that_falls_silent(links: Links, link: str) -> None:
    """Another is made in time, sends go on, nothing accepted is lost, and the audit is complete."""
    up = links.up
    namespace = await up.namespace(["a", "b"], {"a": ["b"]})
    sender = Handling("a", server_addr=links.sender.url, tls=up.tls("a", namespace), receive=False)
    receiver = Handling("b", server_addr=links.receiver.url, tls=up.tls("b", namespace))
    accepted: set[str] = set()
    ended = asyncio.Event()
    longest = 0.0

    async def work() -> None:
        nonlocal longest
        while not ended.is_set():
            begun = time.monotonic()
            with contextlib.suppress(MasError):
                accepted.add(await sender.send("b", "work", {}, timeout=40))
            longest = max(longest, time.monotonic() - begun)
            await asyncio.sleep(0.02)

    async with sender, receiver:
        accepted |= await send_all(sender, "b", 20, 4)
        assert await receiver.wait_handled(accepted, 30) == set()
        working = [asyncio.create_task(work()) for _ in range(4)]
        await asyncio.sleep(0.5)
        proxy: SilentProxy = getattr(links, link)
        before = proxy.connections
        assert proxy.forget()
        silent = time.monotonic()
        async with asyncio.timeout(BOUND):
            while proxy.connections == before:
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        ended.set()
        await asyncio.gather(*working)
        if link == "worker":  # calls that went its old way were asked again, later each time
            await asyncio.sleep(max(0.0, silent + GIVEN_UP - time.monotonic()))
        else:
            assert longest < BOUND
        more = await asyncio.wait_for(send_all(sender, "b", 20, 4), BOUND)
        assert await receiver.wait_handled(more, BOUND) == set()
        # What was on its way to the receiver comes again when nobody has acknowledged it for so long.
        assert await receiver.wait_handled(accepted, ACK_WAIT + BOUND) == set()
        await audit_of(up, namespace, accepted | more)
    verified = mas("audit", "verify", "--folder", str(up.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout
