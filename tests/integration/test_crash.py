"""Kill -9 at random moments: whatever dies, nothing accepted is lost and nothing is delivered unaudited."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from broker_policy.dead_letters.letters import Wanted, letters
from broker_policy.dead_letters.operations import Operations
from broker_policy.jetstream import publish
from mas_nats.errors import Unavailable
from mas_nats.wire import headers, subjects
from tests.load import Handling, audit_of, send_all
from tests.processes import kill
from tests.system import System, mas

MESSAGES = 5_000
CONCURRENCY = 64
HARMS = 6
LETTERS = 1_000


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
        audit = await audit_of(system, namespace, accepted)

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


@pytest.mark.slow
async def test_workers_killed_while_dead_letters_are_redriven(victim: System) -> None:
    """Asked again until none is left: each message is delivered, and none twice."""
    namespace = await victim.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    ids = {f"letter-{number}" for number in range(LETTERS)}
    points = sorted(random.sample(range(50, LETTERS - 50), HARMS))
    async with pair(victim, namespace) as (_, receiver), victim.tenant(namespace) as nc:
        for message_id in sorted(ids):
            fields = {headers.MESSAGE_ID: message_id, headers.SENDER: "sender", headers.TYPE: "work"}
            fields |= {headers.DEAD_REASON: "EXHAUSTED", headers.DEAD_TIME: "1", headers.SENT: "1"}
            await publish(nc, subjects.dead_letter("receiver"), b'{"n":1}', fields)
        operations, done = Operations(nc, "olga", patience=(2.0, 2.0, 4.0)), 0
        while left := [letter.sequence async for letter in letters(nc, Wanted())]:
            try:
                async for row in operations.redrive(left):
                    done += row["status"] != "kept"
                    if points and done >= points[0]:
                        points.pop(0)
                        asyncio.get_running_loop().call_later(
                            random.random() / 10, kill, victim.broker.pid, random.choice(["w1", "w2"])
                        )
            except Unavailable:  # both are being started again
                await asyncio.sleep(0.1)
        assert len(points) < HARMS // 2  # a letter that a killed worker finished may not be counted
        assert await receiver.wait_handled(ids, 60) == set()
        assert set(receiver.handled.values()) == {1}
        audit = await audit_of(victim, namespace, ids)
    for message_id in ids:  # unknown, seldom: its worker died before it could settle the message
        told = [each["outcome"] for each in audit["decisions"][message_id]]
        assert told.count("h") + told.count("?") == 1, told
    verified = mas("audit", "verify", "--folder", str(victim.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout


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
        with pytest.raises(AssertionError, match=r"an outcome of 0 decisions.*, 1 decisions"):
            await audit_of(system, namespace, lost, 1)
