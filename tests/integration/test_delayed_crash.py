"""Delayed messages while workers and the server are killed: each arrives, none early, none twice stored."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker_policy.audit.verify import OVERDUE
from mas_nats import Agent, AgentMessage
from tests.load import UNSURE, audit_of
from tests.processes import kill
from tests.system import System, mas

MESSAGES = 200
SPREAD = 4.0
"""Seconds over which they are due."""


class Noting(Agent[dict[str, Any]]):
    """Notes when each message was handled first, and how often one came that had not been tried before."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.handled: dict[str, float] = {}
        self.copies: Counter[str] = Counter()

    async def on_message(self, message: AgentMessage) -> None:
        self.handled.setdefault(message.message_id, time.time())
        self.copies[message.message_id] += message.attempt == 1


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system to be hurt."""
    running = System.up(tmp_path_factory.mktemp("victim") / ".mas")
    yield running
    running.down()


@asynccontextmanager
async def agents(system: System, namespace: str) -> AsyncIterator[tuple[Noting, Noting]]:
    sender = Noting("sender", server_addr=system.broker.url, tls=system.tls("sender", namespace))
    receiver = Noting("receiver", server_addr=system.broker.url, tls=system.tls("receiver", namespace))
    async with sender, receiver:
        yield sender, receiver


async def until_sure(ask: Callable[[], Any]) -> Any:
    """Repeat until there is an answer."""
    while True:
        try:
            return await ask()
        except UNSURE:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("victims", [("w1", "w2"), ("nats-server",)], ids=["workers", "server"])
async def test_killed(victim: System, victims: tuple[str, ...]) -> None:
    namespace = await victim.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    due: dict[str, float] = {}
    cancelled: set[str] = set()
    async with agents(victim, namespace) as (sender, receiver):

        async def send(number: int) -> None:
            delay = random.uniform(0, SPREAD)
            name, begun = f"m{number}", time.time()
            await until_sure(lambda: sender.send("receiver", "work", {}, id=name, delay=delay))
            due[name] = begun + delay
            if number % 8 == 0 and await until_sure(lambda: sender.cancel(name)):
                cancelled.add(name)

        sending = asyncio.gather(*(send(number) for number in range(MESSAGES)))
        for harm in range(3):
            async with asyncio.timeout(OVERDUE):
                while len(receiver.handled) < (harm + 1) * MESSAGES // 5:
                    await asyncio.sleep(0.02)
            kill(victim.broker.pid, victims[harm % len(victims)])
        await sending
        wanted = due.keys() - cancelled
        async with asyncio.timeout(OVERDUE):
            while wanted - receiver.handled.keys():
                await asyncio.sleep(0.05)
        await audit_of(victim, namespace, set(due))
    assert cancelled
    assert not cancelled & receiver.handled.keys()
    assert all(receiver.handled[name] >= due[name] - 0.01 for name in wanted)
    if "nats-server" not in victims:  # a new server may have forgotten which attempt it is
        assert set(receiver.copies.values()) == {1}, "stored in the inbox twice"
    verified = mas("audit", "verify", "--folder", str(victim.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout
