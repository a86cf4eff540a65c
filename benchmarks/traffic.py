"""The programs that a measurement starts: senders and receivers, each a process of its own.

``python -m benchmarks.traffic ROLE COUNT CONCURRENCY``, run beside a ``.mas`` folder, prints one line of JSON
when it is ready and one when it is done. The raw roles are what people would write on nats-py without any
governance: ``js.publish`` awaited, pull and ack, on the same server, inside a tenant account.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import uvloop
from nats.aio.client import Client

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats import Agent, AgentMessage

NAMESPACE, RAW_NAMESPACE = "default", "raw"
RAW_STREAM, RAW_SUBJECT, RAW_SERVICE = "RAW", "raw.b", "raw.service"
PAYLOAD = {"n": 1, "text": os.environ.get("BENCH_TEXT", "x" * 1000)}
BODY = json.dumps(PAYLOAD).encode()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


class Receiver(Agent[dict[str, Any]]):
    """Counts to ``expected``; answers requests."""

    def __init__(self, agent_id: str, expected: int) -> None:
        super().__init__(agent_id)
        self._expected = expected
        self._seen = 0
        self.done = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self._seen += 1
        if message.message_type == "ask":
            await message.reply("answer", PAYLOAD)
        if self._seen == self._expected:
            self.done.set()


async def receive(count: int, _: int) -> None:
    async with Receiver("b", count) as agent:
        say(ready=True)
        await agent.done.wait()
        say(done=time.time())


async def send(count: int, concurrency: int) -> None:
    async with Agent[dict[str, Any]]("a", receive=False) as agent:
        await measure(count, concurrency, lambda: agent.send("b", "note", PAYLOAD))


async def request(count: int, concurrency: int) -> None:
    async with Agent[dict[str, Any]]("a", receive=False) as agent:
        await measure(count, concurrency, lambda: agent.request("b", "ask", PAYLOAD))


async def raw_receive(count: int, _: int) -> None:
    async with raw() as nc:
        pull = await nc.jetstream().pull_subscribe_bind(consumer="b", stream=RAW_STREAM)
        say(ready=True)
        seen = 0
        while seen < count:
            try:
                for message in await pull.fetch(200, timeout=5):
                    await message.ack()
                    seen += 1
            except nats.errors.TimeoutError:
                continue
        await nc.flush()
        say(done=time.time())


async def raw_send(count: int, concurrency: int) -> None:
    async with raw() as nc:
        js = nc.jetstream(timeout=30)
        await measure(count, concurrency, lambda: js.publish(RAW_SUBJECT, BODY))


async def raw_respond(count: int, _: int) -> None:
    async with raw() as nc:
        done = asyncio.Event()
        seen = 0

        async def answer(message: Any) -> None:
            nonlocal seen
            seen += 1
            await message.respond(BODY)
            if seen == count:
                done.set()

        await nc.subscribe(RAW_SERVICE, cb=answer)
        await nc.flush()
        say(ready=True)
        await done.wait()
        await nc.flush()
        say(done=time.time())


async def raw_request(count: int, concurrency: int) -> None:
    async with raw() as nc:
        await measure(count, concurrency, lambda: nc.request(RAW_SERVICE, BODY, timeout=30))


async def measure(count: int, concurrency: int, once: Callable[[], Awaitable[object]]) -> None:
    """``count`` calls, ``concurrency`` at a time."""
    await once()
    numbers, latencies = iter(range(count - 1)), []
    say(ready=True)

    async def work() -> None:
        for _ in numbers:
            begun = time.perf_counter()
            await once()
            latencies.append(time.perf_counter() - begun)

    started = time.time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    latencies.sort()
    say(
        started=started,
        done=time.time(),
        p50=latencies[len(latencies) // 2],
        p99=latencies[int(len(latencies) * 0.99)],
    )


@asynccontextmanager
async def raw() -> AsyncIterator[Client]:
    layout = Layout(Path.cwd() / ".mas")
    endpoint = Broker.read(layout).connection(layout, "controller")
    nc = await connect_tenant_admin(endpoint, ControllerKeys.load(layout.keys), RAW_NAMESPACE)
    try:
        yield nc
    finally:
        await nc.close()


ROLES = {
    role.__name__.replace("_", "-"): role
    for role in (receive, send, request, raw_receive, raw_send, raw_respond, raw_request)
}

if __name__ == "__main__":
    uvloop.run(ROLES[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))
