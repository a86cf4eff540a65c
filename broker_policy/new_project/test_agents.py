"""Tests that need no server: the agents run on a broker in memory, under the manifest's rules."""

import asyncio
from pathlib import Path

import pytest
from agents import Greeter

from mas_nats import Agent, PermissionDenied
from mas_nats.testing import MemoryBroker

MANIFEST = Path(__file__).parent / "mas.yaml"


async def greeting() -> None:
    async with MemoryBroker.from_manifest(MANIFEST) as broker:
        greeter = broker.agent(Greeter, "greeter", greeting="Good day")
        visitor = broker.agent(Agent, "visitor")
        async with greeter, visitor:
            reply = await visitor.request("greeter", "greet", {"name": "Ada"})
            assert reply.data["text"] == "Good day, Ada! You are number 1."
            assert broker.state_of("greeter") == {"greeted": 1}
            with pytest.raises(PermissionDenied):
                await greeter.send("visitor", "greet", {"name": "nobody asked"})


def test_greeting() -> None:
    asyncio.run(greeting())
