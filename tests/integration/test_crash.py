"""Kill -9 at random moments: whatever dies, nothing accepted is lost and nothing is delivered unaudited."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.load import Handling, audit_of, send_all
from tests.processes import kill
from tests.system import System, mas

MESSAGES = 5_000
CONCURRENCY = 64
HARMS = 6


@pytest.fixture
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of its own, to be hurt."""
    running = System.up(tmp_path_factory.mktemp("victim") / ".mas")
    yield running
    running.down()


@asynccontextmanager
async def pair(system: System, namespace: str) -> AsyncIterator[tuple[Handling, Handling]]:
    sender = Handling("sender", server_addr=system.broker.url, tls=system.tls("sender", namespace))
    receiver = Handling("receiver", server_addr=system.broker.url, tls=system.tls("receiver", namespace))
    async with sender, receiver:
        yield sender, receiver


async def survive(system: System, harm: Callable[[], Awaitable[None]]) -> None:
    """Do ``harm`` at random points among the sends, then look at everything."""
    namespace = await system.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    points = sorted(random.sample(range(100, MESSAGES - 100), HARMS))
    async with pair(system, namespace) as (sender, receiver):

        async def nemesis(accepted: int) -> None:
            while points and accepted >= points[0]:
                points.pop(0)
                await harm()

        accepted = await send_all(sender, "receiver", MESSAGES, CONCURRENCY, progress=nemesis)
        assert not points
        assert len(accepted) == MESSAGES
        assert await receiver.wait_handled(accepted, 60) == set()
        audit = await audit_of(system, namespace, accepted, 90)

    decisions = audit["decisions"]
    for message_id in receiver.handled:
        delivered = [each for each in decisions[message_id] if each["outcome"] == "h"]
        assert delivered, f"{message_id} was delivered and the audit does not say so: {decisions[message_id]}"
        for each in delivered:
            assert "q" not in each or each["s"] < each["q"], "the decision is not before its message"
    verified = mas("audit", "verify", "--folder", str(system.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
async def test_workers_killed(victim: System) -> None:
    async def harm() -> None:
        kill(victim.broker.pid, random.choice(["w1", "w2"]))

    await survive(victim, harm)


@pytest.mark.slow
async def test_redis_killed_and_back(victim: System) -> None:
    async def harm() -> None:
        kill(victim.broker.pid, "redis-server")

    await survive(victim, harm)


@pytest.mark.slow
async def test_the_projecting_worker_killed(victim: System) -> None:
    """The other takes over; nothing is projected twice or left out."""

    async def harm() -> None:
        if name := await projecting(victim):
            kill(victim.broker.pid, name)

    await survive(victim, harm)


async def projecting(system: System) -> str:
    """Which worker holds the lease of the namespace under test; "" where nobody does at this moment."""
    async with system.redis() as redis:
        holders = [await redis.get(key) async for key in redis.scan_iter("mas:audit:t*:lease")]
    return next((holder.decode().partition(".")[0] for holder in holders if holder), "")


async def test_a_message_that_was_never_stored_would_be_noticed(system: System) -> None:
    """The control: what the tests above would say if one accepted message were lost."""
    namespace = await system.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    async with pair(system, namespace) as (sender, receiver):
        accepted = await send_all(sender, "receiver", 20, 4)
        assert await receiver.wait_handled(accepted, 20) == set()
        lost = accepted | {"lost"}
        assert await receiver.wait_handled(lost, 1) == {"lost"}
        await audit_of(system, namespace, accepted, 30)
        with pytest.raises(AssertionError, match="a decision of 1 messages"):
            await audit_of(system, namespace, lost, 1)
