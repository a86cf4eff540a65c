"""The programs that a measurement starts: senders and receivers, each a process of its own.

``python -m benchmarks.traffic ROLE COUNT CONCURRENCY``, run beside a ``.mas`` folder, measures ``COUNT``
calls for each line that it reads, and ends when there are no more. For each it prints a line of JSON when it
is ready, and one when it is done. The raw roles are what people would write on nats-py without any
governance: ``js.publish`` awaited, pull and ack, on the same server, inside a tenant account.

The bare roles are the way of a governed message without any policy: calls that are in flight together go as
one request to a worker, which stores them behind a record and answers. It decides nothing, searches nothing,
audits nothing: what it takes is NATS's and nats-py's.

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
from broker_policy.tenants.connect import Credentials
from broker_policy.tenants.material import ControllerKeys
from mas_nats import Agent, AgentMessage
from mas_nats.loop import run
from mas_nats.wire import headers
from mas_nats.wire.bundle import MOST_CALLS

NAMESPACE, RAW_NAMESPACE = "default", "raw"
RAW_STREAM, RAW_SUBJECT, RAW_SERVICE, RAW_BUCKET = "RAW", "raw.b", "raw.service", "raw"
BARE_STREAM, BARE_SUBJECT, BARE_RECORDS, BARE_SERVICE = "BARE", "bare.inbox.b", "bare.record", "bare.service"
BARE_RECORD = b"x" * 300
"""Stands for a decision in a record."""
BARE_LONE = 4
"""Messages up to which they go as plain publishes, as in the inbox lane."""
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
    await _pull_and_ack(RAW_STREAM, count)


async def bare_receive(count: int, _: int) -> None:
    await _pull_and_ack(BARE_STREAM, count)


async def _pull_and_ack(stream: str, count: int) -> None:
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
        async for _round in rounds():
            say(ready=True)
            for _call in range(count):
                await answered.acquire()
            await nc.flush()
            say(done=time.time())


async def raw_request(count: int, concurrency: int) -> None:
    async with raw() as nc:
        await measure(count, concurrency, lambda: nc.request(RAW_SERVICE, BODY, timeout=30))


async def bare_send(count: int, concurrency: int) -> None:
    together = min(concurrency, MOST_CALLS)
    sizes = [together] * ((count - 1) // together)
    sizes += [rest] if (rest := (count - 1) % together) else []
    async with raw() as nc:
        left: list[int] = []

        async def request() -> None:
            await nc.request(BARE_SERVICE, b"\0".join([BODY] * left.pop()), timeout=30)

        async for _round in rounds():
            left[:] = [*sizes, 1]
            await request()
            await _measured_once(len(sizes), max(1, concurrency // together), request)


async def bare_work(_count: int, _concurrency: int) -> None:
    arrived: list[Any] = []
    woken = asyncio.Event()

    async def take(message: Any) -> None:
        arrived.append(message)
        woken.set()

    async with raw() as nc:
        await nc.subscribe(BARE_SERVICE, cb=take)
        await nc.flush()
        say(ready=True)
        for number in itertools.count():
            await woken.wait()
            woken.clear()
            taken, arrived[:] = list(arrived), []
            await _store(nc, f"{os.getpid()}.{number}", [b for each in taken for b in each.data.split(b"\0")])
            for each in taken:
                await nc.publish(each.reply, b"+")


async def _store(nc: Client, name: str, bodies: list[bytes]) -> None:
    """A record and the messages behind it: plainly where they are few, else as an atomic batch."""
    record, at = BARE_RECORD * len(bodies), f"{BARE_RECORDS}.{name}"
    lines = [{headers.MSG_ID: f"{name}.{place}"} for place in range(len(bodies) + 1)]
    if len(bodies) <= BARE_LONE:
        for before, line in itertools.pairwise(lines):
            line[headers.EXPECTED_LAST_MSG_ID] = before[headers.MSG_ID]
        stored = zip(lines[1:], bodies, strict=True)
        await asyncio.gather(
            nc.request(at, record, headers=lines[0], timeout=30),
            *(nc.request(BARE_SUBJECT, body, headers=line, timeout=30) for line, body in stored),
        )
        return
    batch = name.replace(".", "-")
    for place, line in enumerate(lines, start=1):
        line |= {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(place)}
    await nc.publish(at, record, headers=lines[0])
    for line, body in zip(lines[1:-1], bodies[:-1], strict=True):
        await nc.publish(BARE_SUBJECT, body, headers=line)
    committed = {**lines[-1], headers.BATCH_COMMIT: "1"}
    answer = await nc.request(BARE_SUBJECT, bodies[-1], headers=committed, timeout=30)
    if b'"error"' in answer.data:
        raise RuntimeError(answer.data.decode())


async def measure(count: int, concurrency: int, once: Callable[[], Awaitable[object]]) -> None:
    """In each round ``count`` calls, ``concurrency`` at a time, or at the rate that the environment says."""
    async for _round in rounds():
        await once()
        await _measured_once(count - 1, concurrency, once)


async def _measured_once(count: int, concurrency: int, once: Callable[[], Awaitable[object]]) -> None:
    numbers, latencies = iter(range(count)), []
    say(ready=True)

    async def timed() -> None:
        begun = time.perf_counter()
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
    while WASTE and time.thread_time() < until:
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


ROLES = {
    role.__name__.replace("_", "-"): role
    for role in (
        receive,
        send,
        request,
        state_mediated,
        state_direct,
        bare_receive,
        bare_send,
        bare_work,
        raw_receive,
        raw_send,
        raw_respond,
        raw_request,
        raw_state,
    )
}

if __name__ == "__main__":
    run(ROLES[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))
