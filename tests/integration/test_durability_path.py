"""Accepted means on disk, on the whole way: through the policy service, JetStream, and the audit in Redis.

``test_up_syncs.py`` looks at each server alone. Here agents send through a real worker, and the syscalls of
both servers say what was on disk when the sender got its verdict, and when the projector let go of a record.
The relaxed profile is the control: the same looks at it must find nothing on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest

from broker_policy.audit.store import Store
from broker_policy.embedded.errors import NotDurable
from broker_policy.worker import PolicyWorker, WorkerConfig
from mas_nats.wire import subjects
from tests.disk import OPTIONS, Disk
from tests.processes import children
from tests.syncs import watched
from tests.system import System
from tests.traffic import Caller, callers

LONE = 20
MANY = 200
PURGE = f"$JS.API.STREAM.PURGE.{subjects.INBOX_STREAM}"


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System.up(tmp_path_factory.mktemp("durable") / ".mas", "--workers", "1")
    yield running
    running.down()


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System.up(tmp_path_factory.mktemp("relaxed") / ".mas", "--workers", "1", "--relaxed")
    yield running
    running.down()


@dataclass
class Removal:
    """The projector told the log to let go of a writer's records before ``sequence``."""

    at: float
    writer: str
    sequence: int


@dataclass
class Seen:
    """What was sent, what was answered when (unix seconds), and what the disks had by then."""

    log: Disk
    batches: list[Disk]
    audit: Disk
    lone: dict[str, float] = field(default_factory=dict)  # id -> when its verdict had come
    many: dict[str, float] = field(default_factory=dict)
    removals: list[Removal] = field(default_factory=list)
    entries: list[dict[str, object]] = field(default_factory=list)

    def decided(self, message_id: str) -> float | None:
        """Since when the decision is on disk."""
        return self.log.safe("mas.audit.", message_id)

    def delivered(self, message_id: str) -> float | None:
        """When the message was written to the receiver's inbox."""
        return self.log.written("mas.inbox.receiver", message_id)

    def kept(self, message_id: str) -> float | None:
        """Since when the message is on disk."""
        return self.log.safe("mas.inbox.receiver", message_id)

    def entered(self, entry: dict[str, object]) -> float | None:
        """Since when the audit entry is on disk."""
        return self.audit.safe("mas:audit:", f'\\"{entry["id"]}\\"')

    def flushed_after(self, entry: dict[str, object]) -> float:
        """Seconds from the write of the audit entry until it was on disk; with ``everysec`` up to one."""
        written = self.audit.written("mas:audit:", f'\\"{entry["id"]}\\"')
        entered = self.entered(entry)
        return float("inf") if written is None or entered is None else entered - written

    def removed(self, entry: dict[str, object]) -> float:
        """When the record of a decision was removed from the log."""
        writer, sequence = entry["w"], entry["s"]
        return min(
            (each.at for each in self.removals if each.writer == writer and each.sequence > sequence),
            default=float("inf"),
        )


async def watch(system: System, folder: Path) -> Seen:
    """Send lone messages, then many at once, and wait until their records left the log."""
    namespace = await system.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    servers = children(system.broker.pid)
    nats, redis = folder / "nats", folder / "redis"
    seen = Seen(
        log=Disk(nats, f"/streams/{subjects.INBOX_STREAM}/msgs/"),
        batches=[  # on the disk, until the folder is linked, or in memory
            Disk(nats, f"/streams/{subjects.INBOX_STREAM}/batches/"),
            Disk(nats, f".{subjects.INBOX_STREAM}/"),
        ],
        audit=Disk(redis, "/redis/"),
    )
    async with (
        callers(system, namespace, "sender") as (sender,),
        removals(system, namespace, seen.removals),
        watched(servers["nats-server"], nats, OPTIONS),
        watched(servers["redis-server"], redis, OPTIONS),
    ):
        for number in range(LONE):
            await send(sender, f"lone-{number}-", seen.lone)
        await asyncio.gather(*(send(sender, f"many-{number}-", seen.many) for number in range(MANY)))
        async with asyncio.timeout(30), system.redis() as client:
            store = Store(client, namespace)
            while len(seen.entries) < LONE + MANY or any(
                seen.removed(entry) > time.time() for entry in seen.entries
            ):
                await asyncio.sleep(0.2)
                entries = [stored.entry() async for stored in store.entries()]
                seen.entries = [entry for entry in entries if entry["k"] == "d" and entry["o"] == "send"]
    assert not sender.refused
    return seen


async def send(sender: Caller, message_id: str, answered: dict[str, float]) -> None:
    await sender.send("receiver", message_id=message_id, body=b'{"text": "short"}')
    answered[message_id] = time.time()


@contextlib.asynccontextmanager
async def removals(system: System, namespace: str, found: list[Removal]) -> AsyncIterator[None]:
    """Overhear what the projector asks the log to remove."""

    async def hear(message) -> None:
        wanted = orjson.loads(message.data)
        writer = wanted["filter"].split(".")[2]
        found.append(Removal(time.time(), writer, wanted["seq"]))

    async with system.tenant(namespace) as nc:
        await nc.subscribe(PURGE, cb=hear)
        await nc.flush()
        yield


async def test_what_was_accepted_was_on_disk_before(durable: System, tmp_path: Path) -> None:
    seen = await watch(durable, tmp_path)
    for message_id, answered in (seen.lone | seen.many).items():
        decided, kept = seen.decided(message_id), seen.kept(message_id)
        assert decided is not None, f"the decision about {message_id} is not on disk"
        assert kept is not None, f"{message_id} is not on disk"
        assert max(decided, kept) < answered, f"{message_id} was accepted before it was on disk"
        if message_id in seen.lone:
            assert decided < seen.delivered(message_id), f"{message_id} went before its decision was on disk"
    for entry in seen.entries:
        entered = seen.entered(entry)
        assert entered is not None, f"the audit entry of {entry['id']} is not on disk"
        assert entered < seen.removed(entry), f"the record of {entry['id']} left the log too early"


async def test_many_at_once_share_their_syncs(durable: System, tmp_path: Path) -> None:
    seen = await watch(durable, tmp_path)
    first = min(seen.log.written("mas.audit.", message_id) or 0 for message_id in seen.many)
    last = max(seen.many.values())
    syncs = [
        step
        for disk in (seen.log, *seen.batches)
        for step in disk.steps
        if step.sync and first < step.began < last
    ]
    assert 0 < len(syncs) < MANY / 4


async def test_relaxed_accepts_what_is_not_on_disk(relaxed: System, tmp_path: Path) -> None:
    seen = await watch(relaxed, tmp_path)
    for message_id in seen.lone | seen.many:
        assert seen.delivered(message_id) is not None, message_id
        assert seen.kept(message_id) is None, f"{message_id}: relaxed, and yet on disk"
    late = [entry for entry in seen.entries if seen.flushed_after(entry) > 0.05]
    assert late, "relaxed, and yet Redis flushed every audit entry as it wrote it"


async def test_a_worker_refuses_a_server_that_flushes_late(relaxed: System) -> None:
    config = replace(WorkerConfig.embedded(relaxed.layout, "late"), durable=True)
    worker = PolicyWorker(config)
    with pytest.raises(NotDurable, match="sync_interval: always"):
        await worker.start()
    await worker.stop()


async def test_a_worker_refuses_a_redis_that_flushes_late(durable: System) -> None:
    async with durable.redis() as redis:
        await redis.config_set("appendfsync", "everysec")
        worker = PolicyWorker(WorkerConfig.embedded(durable.layout, "late"))
        try:
            with pytest.raises(NotDurable, match="appendfsync always"):
                await worker.start()
        finally:
            await redis.config_set("appendfsync", "always")
            await worker.stop()
