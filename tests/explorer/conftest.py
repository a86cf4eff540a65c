"""A namespace with traffic of every kind, made once for each file, and an explorer for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage
from mas_nats.errors import Refused
from mas_nats.policy.document import Limits
from tests.conftest import Shared
from tests.explorer.served import Explorer, exploring
from tests.system import System

SECRET = "the-patient-said-4711"
"""Stands in every payload, and must stand nowhere else."""


class Desk(Agent[dict[str, object]]):
    """Answers questions, and fails at what it is told to fail at."""

    async def on_message(self, message: AgentMessage) -> None:
        if message.message_type == "broken":
            raise RuntimeError
        if message.expects_reply:
            await message.reply("answer", {"text": SECRET})


@dataclass(frozen=True)
class Traffic:
    """What was sent."""

    namespace: str
    asked: str  # the id of a request that was answered
    refused: str
    dead: str


@pytest.fixture(scope="module")
def system(shared: Shared) -> System:
    """A running broker, the same for a whole file."""
    return shared.system()


@pytest.fixture(scope="module")
def traffic(system: System) -> Traffic:
    """Two agents, gone again; a request, a send, a refused one, and one that died."""
    return asyncio.run(_traffic(system))


@pytest.fixture(scope="module")
def explorer(system: System, traffic: Traffic) -> Iterator[Explorer]:
    """The explorer of that namespace."""
    with exploring(system, traffic.namespace) as found:
        yield found


def options(system: System, name: str, namespace: str) -> dict[str, Any]:
    """How an agent connects."""
    return {"server_addr": system.broker.url, "tls": system.tls(name, namespace)}


async def _traffic(system: System) -> Traffic:
    limits = Limits(max_deliver=1)
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]}, limits=limits)
    asker = Agent("asker", **options(system, "asker", namespace))
    async with asker, Desk("desk", **options(system, "desk", namespace)):
        await asker.request("desk", "question", {"text": SECRET}, id="asked-1", timeout=30)
        await asker.send("desk", "note", {"text": SECRET})
        with pytest.raises(Refused):
            await asker.send("asker", "note", {"text": SECRET}, id="refused-1")
        await asker.send("desk", "broken", {"text": SECRET}, id="dead-1")
        async with system.tenant(namespace) as nc, asyncio.timeout(60):
            while (await nc.jetstream().stream_info("DLQ")).state.messages < 1:
                await asyncio.sleep(0.05)
    return Traffic(namespace, "asked-1", "refused-1", "dead-1")
