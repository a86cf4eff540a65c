"""Overload: whatever is full, the sender is told, what was accepted is kept, and it goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.embedded.nats_server import write_error
from broker_policy.jetstream import direct_get_page
from mas_nats import Agent, AgentMessage, Overloaded
from mas_nats.wire import subjects
from mas_nats.wire.verdict import Decision
from tests.load import UNSURE, Handling, audit_of, send_all
from tests.parts import parts
from tests.small_disk import fill, small_disk
from tests.system import System, mas

DISK = 900  # megabytes; the reserve is a tenth of it
BIG = "x" * 60_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK) as mounted:
        yield mounted


@pytest.fixture
def crowded(disk: Path) -> Iterator[System]:
    """A system on a small disk."""
    running = System.up(disk / ".mas")
    yield running
    running.down()


def pair(system: System, namespace: str) -> tuple[Handling, Handling]:
    sender = Handling("a", server_addr=system.broker.url, tls=system.tls("a", namespace), receive=False)
    return sender, Handling("b", server_addr=system.broker.url, tls=system.tls("b", namespace))


async def send_until_refused(sender: Handling, accepted: set[str]) -> Overloaded:
    """Send big messages, many at once, until one is refused because something is full."""

    async def work() -> Overloaded:
        while True:
            try:
                accepted.add(await sender.send("b", "work", {"text": BIG}))
            except Overloaded as refused:
                return refused

    return (await asyncio.gather(*(work() for _ in range(16))))[0]


async def intact(system: System, namespace: str, accepted: set[str]) -> None:
    """Everything accepted is audited and settled, and the chain verifies."""
    await audit_of(system, namespace, accepted)
    verified = mas("audit", "verify", "--folder", str(system.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
async def test_a_disk_that_fills_up_is_not_filled(crowded: System, disk: Path) -> None:
    """Messages are refused while there is still room for handling, acknowledging and auditing the others."""
    namespace = await crowded.namespace(["a", "b"], {"a": ["b"]})
    sender, receiver = pair(crowded, namespace)
    accepted: set[str] = set()
    ballast = fill(disk, leave=(DISK // 10 + 30) << 20)
    async with sender:
        refused = await asyncio.wait_for(send_until_refused(sender, accepted), 60)
        assert refused.decision is Decision.LOG_FULL
        assert "disk" in str(refused)
        assert accepted
        assert shutil.disk_usage(disk).free > 10 << 20, "the disk was filled up"
        async with receiver:
            assert await receiver.wait_handled(accepted, 30) == set()
            await audit_of(crowded, namespace, accepted)  # also while it is full
            ballast.unlink()
            more = await asyncio.wait_for(send_all(sender, "b", 20, 4), 30)
            assert await receiver.wait_handled(more, 30) == set()
    await intact(crowded, namespace, accepted | more)


@pytest.mark.slow
async def test_a_disk_filled_by_others_loses_nothing(crowded: System, disk: Path) -> None:
    """Nobody was asked. Once there is room again, everything goes on without a hand on it."""
    namespace = await crowded.namespace(["a", "b"], {"a": ["b"]})
    sender, receiver = pair(crowded, namespace)
    accepted: set[str] = set()
    full = asyncio.Event()

    async def work() -> None:
        while not full.is_set():
            with contextlib.suppress(*UNSURE):
                accepted.add(await sender.send("b", "work", {"text": BIG}, timeout=4))

    async with sender:
        working = [asyncio.create_task(work()) for _ in range(8)]
        try:
            while len(accepted) < 50:
                await asyncio.sleep(0.01)
            ballast = await asyncio.to_thread(fill, disk, leave=0)
            await write_failed(crowded.broker.monitor)
        finally:
            full.set()
            await asyncio.gather(*working)
        ballast.unlink()
        more = await asyncio.wait_for(send_all(sender, "b", 20, 4), 90)
        async with receiver:
            assert await receiver.wait_handled(accepted | more, 60) == set()
            await emptied(crowded, namespace, "b")  # also of what was stored and not accepted
    await intact(crowded, namespace, accepted | more)


async def emptied(system: System, namespace: str, agent: str) -> None:
    """Wait until the inbox is empty."""
    async with system.tenant(namespace) as nc, asyncio.timeout(60):
        while await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox(agent), 1):
            await asyncio.sleep(0.1)


async def write_failed(monitor_url: str) -> None:
    """Wait until the server says that a write failed."""
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(write_error, monitor_url):
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_redis_without_memory_does_not_stop_traffic(tmp_path: Path) -> None:
    """The audit waits in the log, says so, and is complete once Redis has memory again."""
    async with parts(tmp_path, workers=2) as up:
        namespace = await up.namespace(["a", "b"], {"a": ["b"]})
        sender, receiver = pair(up, namespace)
        async with sender, receiver, up.redis() as redis:
            first = await send_all(sender, "b", 50, 8)
            used = (await redis.info("memory"))["used_memory"]
            await redis.config_set("maxmemory", used // 2)
            accepted = first | await send_all(sender, "b", 500, 16)
            assert await receiver.wait_handled(accepted, 30) == set()
            with pytest.raises(AssertionError, match="the audit lacks"):
                await audit_of(up, namespace, accepted, 1)
            await redis.config_set("maxmemory", 0)
            await audit_of(up, namespace, accepted)
            assert not any(worker._broken.done() for worker in up.workers)
        verified = mas("audit", "verify", "--folder", str(up.layout.root), "--namespace", namespace)
        assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
@pytest.mark.alone
async def test_a_stall_leaves_nothing_behind(tmp_path: Path) -> None:
    """Senders that were not answered ask again; that must not be more work than the service can do.

    Before repetitions were marked and senders grew patient, the rate stayed at a fifth while they sent.
    """
    async with parts(tmp_path, workers=2) as up:
        namespace = await up.namespace(["a", "b"], {"a": ["b"]})
        sender, receiver = pair(up, namespace)
        accepted: list[str] = []
        ended = asyncio.Event()

        async def work() -> None:
            while not ended.is_set():
                with contextlib.suppress(*UNSURE):
                    accepted.append(await sender.send("b", "work", {"text": "x" * 500}))

        async def rate(seconds: float) -> float:
            before = len(accepted)
            await asyncio.sleep(seconds)
            return (len(accepted) - before) / seconds

        async with sender, receiver:
            working = [asyncio.create_task(work()) for _ in range(600)]
            await rate(1)  # warm
            usual = await rate(2)
            up.nats.pause()
            await asyncio.sleep(3)
            up.nats.resume()
            rates = [await rate(1) for _ in range(8)]
            ended.set()
            await asyncio.gather(*working)
            assert await receiver.wait_handled(set(accepted), 30) == set()
        assert max(rates[2:]) > usual / 3, f"{usual:.0f} a second before, then {rates}"


class Library(Agent[dict[str, Any]]):
    """Answers with as much as was asked for."""

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("book", {"text": "x" * int(message.data["size"])})


@pytest.mark.slow
async def test_who_does_not_read_is_cut_off_and_gets_everything_after(system: System) -> None:
    """The server keeps 64 MB for a slow consumer; its replies are more. Nobody else waits for it."""
    size, count = 800_000, 100
    allow = {"slow": ["library"], "quick": ["desk"]}
    namespace = await system.namespace(["slow", "quick", "library", "desk"], allow)

    def options(agent: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}

    slow: Agent[dict[str, Any]] = Agent("slow", receive=False, **options("slow"))
    quick: Agent[dict[str, Any]] = Agent("quick", receive=False, **options("quick"))
    async with slow, quick, Library("library", **options("library")), Library("desk", **options("desk")):

        async def ask(agent: Agent[dict[str, Any]], target: str, size: int) -> int:
            return len((await agent.request(target, "borrow", {"size": size}, timeout=100)).data["text"])

        assert await ask(slow, "library", size) == size
        transport = _socket(slow)
        asked = [asyncio.create_task(ask(slow, "library", size)) for _ in range(count)]
        await asyncio.sleep(0)
        transport.pause_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(12):
                while not transport.is_closing():
                    assert await ask(quick, "desk", 10) == 10
        assert not any(each.done() for each in asked), "it reads: the test shows nothing"
        if not transport.is_closing():
            transport.resume_reading()
        assert await asyncio.gather(*asked) == [size] * count


def _socket(agent: Agent[dict[str, Any]]) -> asyncio.Transport:
    """The transport below an agent's connection, as asyncio has it."""
    running: Any = agent._running
    transport: asyncio.Transport = running.connection._client._transport._io_writer.transport
    return transport
