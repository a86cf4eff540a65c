"""Many instances of one agent: they come, leave and die under load, and nothing is lost or run again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mas_nats import Agent
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from mas_nats.wire.correlation import new_message_id
from tests.instances import Instances, instances
from tests.load import UNSURE, send_all
from tests.system import System

LIMITS = Limits(ack_wait=3.0, retry_delay=0.1, retry_delay_max=0.5, in_flight=16, max_ack_pending=40)
MESSAGES = 1000
REQUESTS = 100


def lost(sent: set[str], worked: Instances) -> set[str]:
    """What was accepted and never handled to its end."""
    return sent - worked.lines("done").keys()


def run_again(acknowledged: Counter[str], worked: Instances) -> set[str]:
    """What was run more often than when it was acknowledged."""
    runs = worked.lines("run")
    return {message for message, before in acknowledged.items() if runs[message] > before}


async def ask(asker: Agent[Any], count: int) -> None:
    """Ask until each is answered; each answer is the one to this question of this instance."""

    async def one(number: int) -> None:
        question = {"n": number, "by": asker.instance}
        message_id = new_message_id()
        while True:
            try:
                reply = await asker.request("worker", "ask", question, id=message_id, timeout=60)
            except UNSURE:
                continue
            assert reply.data["got"] == question
            return

    for first in range(0, count, 20):
        await asyncio.gather(*(one(number) for number in range(first, first + 20)))


@pytest.fixture
async def namespace(system: System) -> str:
    return await system.namespace(["asker", "worker"], {"asker": ["worker"]}, limits=LIMITS)


@pytest.mark.slow
@pytest.mark.alone
async def test_instances_come_and_go_under_load(system: System, namespace: str, tmp_path: Path) -> None:
    options = {"server_addr": system.broker.url, "tls": system.tls("asker", namespace), "receive": False}
    pending: list[int] = []
    acknowledged: Counter[str] = Counter()
    with instances(system, namespace, "worker", tmp_path / "log") as worked:
        async with Agent("asker", **options) as one, Agent("asker", **options) as other:
            ended = asyncio.Event()
            watching = asyncio.create_task(watch(system, namespace, pending, ended))
            first, second = worked.start("--pause", "0.02"), worked.start("--pause", "0.02")
            load = [
                asyncio.create_task(send_all(one, "worker", MESSAGES, 64)),
                asyncio.create_task(ask(one, REQUESTS)),
                asyncio.create_task(ask(other, REQUESTS)),
            ]
            await handled(worked, 200)
            third = worked.start("--pause", "0.02")
            await handled_by(worked, third.pid)
            acknowledged |= await worked.kill(first)
            fourth = worked.start("--pause", "0.02")
            await handled_by(worked, fourth.pid)
            await worked.leave(second)
            left = worked.lines("run", second.pid)
            assert left == worked.lines("done", second.pid), "a clean leave finishes what it began"
            acknowledged |= Counter({message: worked.lines("run")[message] for message in left})
            acknowledged |= await worked.kill(third)
            worked.start("--pause", "0.02")
            sent, *_ = await asyncio.wait_for(asyncio.gather(*load), 120)
            assert isinstance(sent, set)
            async with asyncio.timeout(90):
                while await worked.waiting():
                    await asyncio.sleep(0.1)
            ended.set()
            await watching
    assert len(sent) == MESSAGES
    assert lost(sent, worked) == set()
    assert len(acknowledged) > 200, "the instances died too early to show anything"
    assert run_again(acknowledged, worked) == set()
    runs = worked.lines("run")
    assert sum(runs.values()) - len(runs) <= 2 * LIMITS.in_flight, "only what a killed one held ran twice"
    assert max(pending) <= LIMITS.max_ack_pending


@pytest.mark.slow
async def test_the_control_acknowledging_first_loses(system: System, namespace: str, tmp_path: Path) -> None:
    """What the test above would say of an instance that acknowledges before it has handled."""
    options = {"server_addr": system.broker.url, "tls": system.tls("asker", namespace), "receive": False}
    with instances(system, namespace, "worker", tmp_path / "log") as worked:
        async with Agent("asker", **options) as asker:
            wrong = worked.start("--pause", "5", "--acknowledge-first")
            sent = await send_all(asker, "worker", 60, 30)
            async with asyncio.timeout(90):
                while len(await worked.waiting()) == len(sent):
                    await asyncio.sleep(0.05)
            await worked.kill(wrong)
            worked.start()
            async with asyncio.timeout(90):
                while await worked.waiting():
                    await asyncio.sleep(0.1)
        assert lost(sent, worked)
        told = Counter(dict.fromkeys(sent, 0))
        assert run_again(told, worked), "and an acknowledged message that ran once more would be seen"


async def test_work_is_shared_between_the_instances(system: System, namespace: str, tmp_path: Path) -> None:
    """Three take 16 of 40 each at most: none is left without work."""
    options = {"server_addr": system.broker.url, "tls": system.tls("asker", namespace), "receive": False}
    with instances(system, namespace, "worker", tmp_path / "log") as worked:
        three = [worked.start("--pause", "0.05") for _ in range(3)]
        async with Agent("asker", **options) as asker:
            for each in three:
                await send_until_handled(asker, worked, each.pid)
            before = [sum(worked.lines("done", each.pid).values()) for each in three]
            sent = await send_all(asker, "worker", 600, 64)
            async with asyncio.timeout(90):
                while lost(sent, worked):
                    await asyncio.sleep(0.1)
            shares = [
                sum(worked.lines("done", each.pid).values()) - already
                for each, already in zip(three, before, strict=True)
            ]
    assert min(shares) > 600 / 10, shares


async def handled(worked: Instances, count: int) -> None:
    async with asyncio.timeout(90):
        while len(worked.lines("run")) < count:
            await asyncio.sleep(0.02)


async def handled_by(worked: Instances, pid: int) -> None:
    async with asyncio.timeout(90):
        while not worked.lines("done", pid):
            await asyncio.sleep(0.02)


async def send_until_handled(asker: Agent[Any], worked: Instances, pid: int) -> None:
    async with asyncio.timeout(90):
        while not worked.lines("run", pid):
            await asyncio.gather(*(asker.send("worker", "work", {}) for _ in range(10)))


async def watch(system: System, namespace: str, pending: list[int], ended: asyncio.Event) -> None:
    """How many messages all instances have in flight together."""
    async with system.tenant(namespace) as client:
        while not ended.is_set():
            info = await client.jetstream().consumer_info(subjects.INBOX_STREAM, "worker")
            pending.append(info.num_ack_pending or 0)
            await asyncio.sleep(0.05)
