"""The programs that a measurement starts: senders and receivers, each a process of its own.

``python -m benchmarks.traffic ROLE COUNT CONCURRENCY``, run beside a ``.mas`` folder, measures ``COUNT``
calls for each line that it reads, and ends when there are no more. For each it prints a line of JSON when it
is ready, and one when it is done. The raw roles are what people would write on nats-py without any
governance: ``js.publish`` awaited, pull and ack, on the same server, inside a tenant account.

From the environment: ``BENCH_BYTES``, the size of the JSON that is sent, or ``BENCH_TEXT``, a text in it;
``BENCH_RATE``, how many calls a second are begun, when it is not to be as many as are possible; and
``BENCH_WASTE``, microseconds of processor time that a sender wastes before each call, to see whether somebody
notices.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from pydantic import BaseModel

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.tenants.connect import Credentials, connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats import Agent, AgentMessage
from mas_nats.loop import run
from mas_nats.resilient import ResilientClient

NAMESPACE, RAW_NAMESPACE = "default", "raw"
RAW_STREAM, RAW_SUBJECT, RAW_SERVICE, RAW_BUCKET = "RAW", "raw.b", "raw.service", "raw"
PROSE = "the quick brown fox jumps over the lazy dog and sleeps "
ENVELOPE = len(json.dumps({"n": 1, "text": ""}))
BYTES = int(os.environ.get("BENCH_BYTES", "1024"))
TEXT = (PROSE * (BYTES // len(PROSE) + 1))[: BYTES - ENVELOPE]
PAYLOAD = {"n": 1, "text": os.environ.get("BENCH_TEXT", TEXT)}
BODY = json.dumps(PAYLOAD).encode()
RATE = float(os.environ.get("BENCH_RATE", "0"))
WASTE = float(os.environ.get("BENCH_WASTE", "0")) / 1e6


def say(**what: object) -> None:
    """One line; with it, what this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**what, "cpu": used.ru_utime + used.ru_stime, "peak_kb": used.ru_maxrss}), flush=True)


async def rounds() -> AsyncIterator[None]:
    """One for each line that is read."""
    while await asyncio.to_thread(sys.stdin.readline):
        yield


class Receiver(Agent[dict[str, Any]]):
    """Counts what arrives; answers requests."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self._missing = 0
        self._all_seen = asyncio.Event()

    def expect(self, count: int) -> asyncio.Event:
        """Count from here on; what is set when so many were handled."""
        self._missing, self._all_seen = count, asyncio.Event()
        return self._all_seen

    async def on_message(self, message: AgentMessage) -> None:
        if message.message_type == "ask":
            await message.reply("answer", PAYLOAD)
        self._missing -= 1
        if not self._missing:
            self._all_seen.set()


async def receive(count: int, _: int) -> None:
    async with Receiver("b") as agent:
        async for _round in rounds():
            all_seen = agent.expect(count)
            say(ready=True)
            await all_seen.wait()
            say(done=time.time())


async def send(count: int, concurrency: int) -> None:
    async with Agent[dict[str, Any]]("a", receive=False) as agent:
        await measure(count, concurrency, lambda: agent.send("b", "note", PAYLOAD))


async def request(count: int, concurrency: int) -> None:
    async with Agent[dict[str, Any]]("a", receive=False) as agent:
        await measure(count, concurrency, lambda: agent.request("b", "ask", PAYLOAD))


class Kept(BaseModel):
    """A state of the size of the payload."""

    n: int = 0
    text: str = ""


async def _state(agent_id: str, count: int) -> None:
    async with Agent[Kept](agent_id, state_model=Kept, receive=False) as agent:
        numbers = itertools.count(1)
        await measure(count, 1, lambda: agent.update_state({**PAYLOAD, "n": next(numbers)}))


async def state_mediated(count: int, _: int) -> None:
    await _state("a", count)


async def state_direct(count: int, _: int) -> None:
    await _state("direct", count)


async def raw_state(count: int, _: int) -> None:
    async with raw() as nc:
        bucket = await nc.jetstream(timeout=30).key_value(RAW_BUCKET)
        last = await bucket.put("a", BODY)

        async def update() -> None:
            nonlocal last
            last = await bucket.update("a", BODY, last)

        await measure(count, 1, update)


async def raw_receive(count: int, _: int) -> None:
    await pull_and_ack(RAW_STREAM, count)


async def pull_and_ack(stream: str, count: int) -> None:
    """In each round ``count`` messages of ``stream``."""
    async with raw() as nc:
        pull = await nc.jetstream().pull_subscribe_bind(consumer="b", stream=stream)
        async for _round in rounds():
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
        answered = asyncio.Semaphore(0)

        async def answer(message: Any) -> None:
            await message.respond(BODY)
            answered.release()

        await nc.subscribe(RAW_SERVICE, cb=answer)
        await nc.flush()
        await counted(nc, count, answered)


async def counted(nc: Client, count: int, answered: asyncio.Semaphore) -> None:
    """In each round ``count`` calls that ``answered`` counts."""
    async for _round in rounds():
        say(ready=True)
        for _call in range(count):
            await answered.acquire()
        await nc.flush()
        say(done=time.time())


async def raw_request(count: int, concurrency: int) -> None:
    async with raw() as nc:
        await measure(count, concurrency, lambda: nc.request(RAW_SERVICE, BODY, timeout=30))


async def measure(count: int, concurrency: int, once: Callable[[], Awaitable[object]]) -> None:
    """In each round ``count`` calls, ``concurrency`` at a time, or at the rate that the environment says."""
    async for _round in rounds():
        await once()
        await measured_once(count - 1, concurrency, once)


async def measured_once(count: int, concurrency: int, once: Callable[[], Awaitable[object]]) -> None:
    """One round: ``count`` calls, after which it says how long they took."""
    numbers, latencies = iter(range(count)), []
    say(ready=True)

    async def timed() -> None:
        begun = time.perf_counter()
        if WASTE:
            waste()
        await once()
        latencies.append(time.perf_counter() - begun)

    async def work() -> None:
        for _ in numbers:
            await timed()

    started = time.time()
    if RATE:
        await at_rate(numbers, timed)
    else:
        await asyncio.gather(*(work() for _ in range(concurrency)))
    latencies.sort()
    say(
        started=started,
        done=time.time(),
        p50=latencies[len(latencies) // 2],
        p99=latencies[int(len(latencies) * 0.99)],
    )


def waste() -> None:
    """Compute for as long as the environment says."""
    until = time.thread_time() + WASTE
    while time.thread_time() < until:
        pass


async def at_rate(numbers: Iterator[int], once: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begin one call each time it is due, whether the one before it has ended or not."""
    loop = asyncio.get_running_loop()
    due, running = loop.time(), set[asyncio.Task[None]]()
    for _ in numbers:
        due += 1 / RATE
        await asyncio.sleep(due - loop.time())
        running.add(task := asyncio.create_task(once()))
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


@asynccontextmanager
async def raw() -> AsyncIterator[Client]:
    """A connection of nats-py as it is."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each end of a TLS connection
    layout = Layout(Path.cwd() / ".mas")
    endpoint = Broker.read(layout).connection(layout, "controller")
    account, user = ControllerKeys.load(layout.keys).account(RAW_NAMESPACE), KeyPair.create(Kind.USER)
    credentials = Credentials(user, account, jwt.user_claims(user.public, "raw", jwt.EVERYTHING))
    nc = await nats.connect(
        endpoint.url.split(","),
        tls=endpoint.ssl_context(),
        tls_hostname=endpoint.tls_hostname,
        user_jwt_cb=credentials.encode,
        signature_cb=lambda nonce: base64.b64encode(user.sign(nonce.encode())),
    )
    try:
        yield nc
    finally:
        await nc.close()


@asynccontextmanager
async def ours() -> AsyncIterator[ResilientClient]:
    """A connection of this project's client, which takes less for headers, requests and answers."""
    layout = Layout(Path.cwd() / ".mas")
    endpoint = Broker.read(layout).connection(layout, "controller")
    nc = await connect_tenant_admin(endpoint, ControllerKeys.load(layout.keys), RAW_NAMESPACE)
    try:
        yield nc
    finally:
        await nc.close()


def role(*known: Callable[[int, int], Coroutine[Any, Any, None]]) -> Coroutine[Any, Any, None]:
    """That of ``known`` which the command line names, with its count and concurrency."""
    roles = {each.__name__.replace("_", "-"): each for each in known}
    return roles[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    run(
        role(
            receive,
            send,
            request,
            state_mediated,
            state_direct,
            raw_receive,
            raw_send,
            raw_respond,
            raw_request,
            raw_state,
        )
    )
