"""Redis is slow, read-only, without memory, or older than it was: the log keeps what it lacks.

Redis killed and back: ``test_audit_projector.py``, whole workers: ``test_overload.py`` and ``make chaos``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeout

from broker_policy.audit import log
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.draft import Draft
from broker_policy.audit.findings import FindingKind
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.loss import accept, find
from broker_policy.audit.projector import Projector
from broker_policy.audit.record import Way
from broker_policy.audit.signer import ChainAltered, Signer
from broker_policy.audit.store import Store
from broker_policy.audit.verify import verify
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.audit_log import KEY, NAMESPACE, LogWriter, connect, line, make_streams


class Running:
    """A log, a projector that runs, and Redis seen from beside it."""

    def __init__(self, nc: Client, redis: Redis, beside: Redis) -> None:
        self.nc = nc
        self.redis = beside
        self.store = Store(beside, NAMESPACE)
        self.projector = Projector(NAMESPACE, nc, redis, KEY, interval=0.02)
        self.written: list[str] = []
        self.writer = LogWriter(nc)

    async def write(self, batches: int = 5) -> None:
        for _ in range(batches):
            lines = [line(Way.BATCH), line(), line(Way.BATCH)]
            self.written += [each.message_id for each in lines]
            await self.writer.batch(lines)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while not await condition():
                await asyncio.sleep(0.02)

    async def caught_up(self) -> None:
        last = await log.newest_record(self.nc)

        async def reached() -> bool:
            return (await self.store.head()).sequence >= last

        await self.until(reached)

    async def ids(self) -> list[str]:
        entries = [stored.entry() async for stored in self.store.entries()]
        return [entry["id"] for entry in entries if entry["k"] == "d"]

    async def intact(self) -> None:
        keys = CheckpointKeys(Ed25519PrivateKey.generate().public_key())
        assert (await verify(self.store, None, keys)).findings == []


@pytest.fixture
async def running(
    nats_server: NatsServer, redis_server: RedisServer, ca: CertificateAuthority, tmp_path: Path
) -> AsyncIterator[Running]:
    worker = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.POLICY, "worker")
    nc = await connect(nats_server, ca.issue(worker, tmp_path / "certificate"))
    await make_streams(nc)
    redis = Redis.from_url(redis_server.url, socket_timeout=0.3)
    beside = Redis.from_url(redis_server.url, socket_timeout=10)
    made = Running(nc, redis, beside)
    await made.writer.open()
    task = asyncio.create_task(made.projector.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for client in (redis, beside):
        await client.aclose()
    await nc.close()


async def no_replica(redis: Redis) -> None:
    await redis.config_set("min-replicas-to-write", 1)


async def replica_again(redis: Redis) -> None:
    await redis.config_set("min-replicas-to-write", 0)


async def read_only(redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", 1)  # of nobody: it keeps its data and refuses writes


async def writable(redis: Redis) -> None:
    await redis.replicaof("NO", "ONE")


async def no_memory(redis: Redis) -> None:
    await redis.config_set("maxmemory", 1)


async def memory_again(redis: Redis) -> None:
    await redis.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("begin", "end", "why"),
    [
        (no_replica, replica_again, "NOREPLICAS"),
        (read_only, writable, "READONLY"),
        (no_memory, memory_again, "OOM"),
    ],
    ids=["min-replicas-to-write", "a replica", "maxmemory"],
)
async def test_a_redis_that_refuses_writes(running: Running, caplog, begin, end, why) -> None:
    await running.write()
    await running.caught_up()
    before = await running.store.head()
    with caplog.at_level(logging.INFO):
        await begin(running.redis)
        await running.write()

        async def said() -> bool:
            return "not projecting" in caplog.text

        await running.until(said)
        await running.write()
        assert await running.store.head() == before  # nothing half, nothing at all
        lag = await running.projector.lag()
        assert lag.records >= 10  # what Redis lacks is in the log
        await end(running.redis)
        await running.caught_up()

        async def said_again() -> bool:
            return "projecting again" in caplog.text

        await running.until(said_again)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert why in warning  # once, and in Redis's own words
    assert sorted(await running.ids()) == sorted(running.written)
    await running.intact()


async def test_what_else_goes_wrong_meanwhile_is_said_too(running: Running, caplog) -> None:
    """It would be looked for where it is no more."""

    async def said(what: str, times: int = 1) -> None:
        async def so() -> bool:
            return caplog.text.count(what) >= times

        await running.until(so)

    with caplog.at_level(logging.WARNING):
        await no_memory(running.redis)
        await running.write()
        await said("OOM")
        await read_only(running.redis)
        await said("READONLY")
        await writable(running.redis)
        await no_memory(running.redis)
        await asyncio.sleep(1)
        await memory_again(running.redis)
        await running.caught_up()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)), "each once"


async def test_a_redis_that_is_slow(running: Running) -> None:
    """Longer than the client waits: an append that was given up may have been made, and is not made twice."""
    timeouts = 0
    real = running.projector.store.append

    async def slowly(draft: Draft) -> bool:
        nonlocal timeouts
        if timeouts < 3:
            await running.redis.client_pause(600, all=False)  # writes are taken, and wait
        try:
            return await real(draft)
        except RedisTimeout:
            timeouts += 1
            raise

    running.projector.store.append = slowly  # type: ignore[method-assign]
    for _ in range(4):
        await running.write(2)
        await running.caught_up()
    assert timeouts == 3  # the control
    assert sorted(await running.ids()) == sorted(running.written)
    await running.intact()


async def test_a_redis_that_is_older_than_it_was(running: Running) -> None:
    """While the projector runs: what was projected and removed is lost, named, and never signed over."""
    key = Ed25519PrivateKey.generate()
    keys, stream = CheckpointKeys(key.public_key()), CheckpointStream(running.nc, NAMESPACE)
    signer = Signer(running.store, stream, key)
    await running.write()
    await running.caught_up()
    kept = (await running.store.head()).index
    await signer.sign_once()
    dump = {name: await running.redis.dump(name) async for name in running.redis.scan_iter()}
    await running.write()
    await running.caught_up()
    lost = await signer.sign_once()
    assert lost is not None

    async def removed() -> bool:
        return await records(running.nc) <= 1  # a writer's last record stays

    await running.until(removed)
    async with running.redis.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for name, value in dump.items():
            if not name.endswith(b":lease"):
                pipe.restore(name, 0, value)
        await pipe.execute()
    await running.write()
    await running.caught_up()
    entries = [stored.entry() async for stored in running.store.entries()]
    gaps = [entry for entry in entries if entry["k"] == "a" and entry["e"] == "gap"]
    assert gaps  # the records in between are named
    assert gaps[0]["i"] == kept + 1
    with pytest.raises(ChainAltered):
        await signer.sign_once()
    report = await verify(running.store, stream.standing(keys), keys)
    assert {finding.kind for finding in report.findings} & {FindingKind.CUT, FindingKind.REWRITTEN}
    missing = await find(running.store, stream, keys)
    assert (missing.first, missing.last) == (kept + 1, lost.index)
    await accept(running.store, stream, key, missing, "an older dump")
    assert await signer.sign_once() is None
    assert (await verify(running.store, stream.standing(keys), keys)).findings == []


async def records(nc: Client) -> int:
    page = await log.read(nc, 1, most=1)
    return len(page.messages) + page.pending
