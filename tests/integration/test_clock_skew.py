"""Two workers, one half a minute ahead and one behind: nothing is lost, nothing refused, times are right."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker_policy.audit.store import Store
from broker_policy.embedded.process import Process
from mas_nats import Agent, AgentMessage, Unavailable
from mas_nats.config import Endpoint
from mas_nats.connection import NatsConnection
from tests.load import Handling, audit_of, send_all
from tests.parts import Parts, parts
from tests.system import REPOSITORY, mas_json


class Desk(Handling):
    """Answers what it is asked."""

    async def on_message(self, message: AgentMessage) -> None:
        await super().on_message(message)
        if message.message_type == "ask":
            await message.reply("answer", {})


@contextlib.asynccontextmanager
async def skewed(up: Parts, *machines: tuple[float, bool]) -> AsyncIterator[None]:
    """Workers whose clocks are so many seconds off; those that are blind do not notice."""
    workers = []
    for number, (seconds, blind) in enumerate(machines, 1):
        name, layout = f"s{number}", up.layout
        ready = layout.ready(name)

        async def is_ready(ready: Path = ready) -> bool:
            return ready.exists()

        command = [sys.executable, "-m", "tests.skewed_worker", str(seconds), *(["--blind"] if blind else [])]
        command += ["--folder", str(layout.root), "--name", name]
        workers.append(Process(name, command, cwd=REPOSITORY, output=layout.log(name), ready=is_ready))
    await asyncio.gather(*(worker.start() for worker in workers))
    try:
        yield
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


async def ask(agent: Agent, count: int) -> list[BaseException]:
    """Ask bob, 20 at a time; what went wrong."""
    free = asyncio.Semaphore(20)

    async def one() -> None:
        async with free:
            await agent.request("bob", "ask", {}, timeout=4)

    results = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    return [result for result in results if result is not None]


async def test_workers_with_wrong_clocks_judge_by_the_servers_time(tmp_path):
    async with parts(tmp_path, workers=0) as up, skewed(up, (30, False), (-30, False)):
        namespace = await up.namespace(("alice", "bob"), {"alice": ("bob",)})
        url = up.broker.url
        async with (
            Desk("bob", server_addr=url, tls=up.tls("bob", namespace)) as bob,
            Agent("alice", server_addr=url, tls=up.tls("alice", namespace)) as alice,
        ):
            accepted, failed = await asyncio.gather(send_all(alice, "bob", 500, 20), ask(alice, 300))
            assert failed == []
            assert await bob.wait_handled(accepted, 30) == set()
            audit = await audit_of(up, namespace, accepted)
        now = time.time() * 1000
        async with up.redis() as redis:
            entries = [stored.entry() async for stored in Store(redis, namespace).entries()]
        times = [entry["at"] for entry in entries if "at" in entry]
        assert now - 60_000 < min(times)
        assert max(times) < now + 500, "audit times are the server's"
        workers = {str(entry["w"])[:13] for entry in audit["entries"] if entry["k"] == "d"}
        assert len(workers) == 2, "both took part"
        folder = str(up.layout.root)
        report = await asyncio.to_thread(
            mas_json, "audit", "verify", "--folder", folder, "-n", namespace, "--overdue", "0"
        )
        assert report["intact"]
        assert "ahead of the NATS server's" in up.layout.log("s1").read_text()
        assert "behind the NATS server's" in up.layout.log("s2").read_text()


async def test_the_control_ahead_and_blind_it_lets_nobody_in(tmp_path):
    """The server's question who somebody is has expired by that clock."""
    async with parts(tmp_path, workers=0) as up, skewed(up, (30, True)):
        namespace = await up.namespace(("alice",), {})
        tls = up.tls("alice", namespace)
        with pytest.raises(Unavailable):
            await NatsConnection(Endpoint(up.broker.url, tls), name="alice").open(3)


async def test_the_control_behind_and_blind_its_times_are_wrong(tmp_path):
    async with parts(tmp_path, workers=0) as up, skewed(up, (-30, True)):
        namespace = await up.namespace(("alice", "bob"), {"alice": ("bob",)})
        url = up.broker.url
        async with (
            Desk("bob", server_addr=url, tls=up.tls("bob", namespace)),
            Agent("alice", server_addr=url, tls=up.tls("alice", namespace)) as alice,
        ):
            message_id = await alice.send("bob", "work", {})
            audit = await audit_of(up, namespace, {message_id})
        assert audit["decisions"][message_id][0]["at"] < time.time() * 1000 - 20_000


async def test_a_step_of_a_workers_clock_neither_releases_early_nor_dates_wrong(tmp_path, monkeypatch):
    """Also not until the worker asks the server for the time again."""
    async with parts(tmp_path) as up:
        namespace = await up.namespace(("alice", "bob"), {"alice": ("bob",)})
        url = up.broker.url
        async with (
            Desk("bob", server_addr=url, tls=up.tls("bob", namespace)) as bob,
            Agent("alice", server_addr=url, tls=up.tls("alice", namespace)) as alice,
        ):
            far = await alice.send("bob", "work", {}, delay=1800)
            right, right_ns = time.time, time.time_ns
            monkeypatch.setattr(time, "time", lambda: right() + 3600)
            monkeypatch.setattr(time, "time_ns", lambda: right_ns() + 3_600_000_000_000)
            # Each held message has the releaser look at what is due.
            near = {await alice.send("bob", "work", {}, delay=0.1) for _ in range(10)}
            assert await bob.wait_handled(near, 20) == set()
            monkeypatch.undo()
            assert far not in bob.handled
        async with up.redis() as redis:
            entries = [stored.entry() async for stored in Store(redis, namespace).entries()]
        assert max(entry["at"] for entry in entries if "at" in entry) < (time.time() + 1) * 1000
