"""What an instance asks of a consumer that is led by another node than its own.

Such a leader does not see whether anybody still listens to the inbox that a request names. It gives messages
to one that was left, too, until the request expires; they come again after the ack wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from broker_policy.jetstream import Unsettled, api
from mas_nats import Agent, AgentMessage
from mas_nats.pull import StandingPull
from mas_nats.transport import Incoming
from mas_nats.wire import subjects
from tests.cluster.conftest import NODES, Cluster

MESSAGES = 40


async def leader_of(cluster: Cluster, namespace: str, agent: str) -> int:
    """The node that leads the agent's consumer."""
    async with cluster.tenant(namespace) as tenant, asyncio.timeout(30):
        while True:
            try:
                info = await api(tenant, f"CONSUMER.INFO.{subjects.INBOX_STREAM}.{agent}", {})
                return cluster.number(info["cluster"]["leader"])
            except (KeyError, Unsettled, TimeoutError):
                await asyncio.sleep(0.1)


async def test_what_it_had_room_for_while_its_connection_was_lost_is_asked_for_once(cluster: Cluster) -> None:
    """Else half of its messages go to an inbox that it has left, until that request expires."""
    namespace = await cluster.namespace(["sender", "taker"], {"sender": ["taker"]})
    leader = await leader_of(cluster, namespace, "taker")
    node = next(node for node in NODES if node != leader)
    room, taken = 0, list[str]()
    back, enough = asyncio.Event(), asyncio.Event()

    def take(incoming: Incoming) -> None:
        taken.append(incoming.reply)
        if len(taken) == MESSAGES:
            enough.set()

    async with (
        Agent[Any](
            "sender", receive=False, server_addr=cluster.broker.url, tls=cluster.tls("sender", namespace)
        ) as sender,
        Agent[Any](
            "taker", receive=False, server_addr=cluster.url(node), tls=cluster.tls("taker", namespace)
        ) as taker,
    ):
        connection: Any = taker._alive().connection
        pull = StandingPull(
            connection,
            subjects.pull("taker"),
            take,
            room=lambda: room,
            busy=lambda: 0,
            anew=lambda: None,
        )

        def lost() -> None:
            nonlocal room
            pull.lost()
            room = 100
            pull.more()

        async def restart() -> None:
            await pull.restart()
            back.set()

        connection.at_loss.append(lost)
        connection.after_reconnect.append(restart)
        await pull.start()
        try:
            await connection._client.force_reconnect()
            await asyncio.wait_for(back.wait(), 10)
            await asyncio.gather(*(sender.send("taker", "work", {}) for _ in range(MESSAGES)))
            await asyncio.wait_for(enough.wait(), 10)  # less than the ack wait
        finally:
            await pull.stop()


class Taker(Agent[Any]):
    """Notes what it is given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: list[int] = []

    async def on_message(self, message: AgentMessage) -> None:
        self.given.append(message.attempt)


async def another_leader(cluster: Cluster, namespace: str, before: int) -> None:
    """Return when another node leads the consumer, or after a second: then nothing is forgotten."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while await leader_of(cluster, namespace, "taker") == before:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["left", "reconnected", "lost its connection"])
async def test_what_an_instance_asked_for_is_forgotten_when_it_is_gone(cluster: Cluster, how: str) -> None:
    """Else half of the messages go to nobody, and come again after the ack wait, half a minute later."""
    namespace = await cluster.namespace(["sender", "taker"], {"sender": ["taker"]})
    leader = await leader_of(cluster, namespace, "taker")
    url = cluster.url(next(node for node in NODES if node != leader))
    own = cluster.tls("taker", namespace)

    async def given(count: int) -> None:
        while len(stays.given) + len(other.given) < count:
            await asyncio.sleep(0.05)

    async with (
        Agent[Any](
            "sender", receive=False, server_addr=cluster.broker.url, tls=cluster.tls("sender", namespace)
        ) as sender,
        Taker("taker", server_addr=url, tls=own) as stays,
        Taker("taker", server_addr=url, tls=own) as other,
    ):
        await asyncio.gather(*(sender.send("taker", "work", {}) for _ in range(20)))
        await asyncio.wait_for(given(20), 10)
        connection: Any = other._alive().connection
        match how:
            case "left":
                await other.stop()
            case "reconnected":
                await connection.reconnect()
            case "lost its connection":
                await connection._client.force_reconnect()
        await another_leader(cluster, namespace, leader)
        await asyncio.gather(*(sender.send("taker", "work", {}) for _ in range(MESSAGES)))
        await asyncio.wait_for(given(20 + MESSAGES), 20)  # less than the ack wait
    assert {*stays.given, *other.given} == {1}
