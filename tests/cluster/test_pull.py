"""What an instance asks of a consumer that is led by another node than its own.

Such a leader does not see whether anybody still listens to the inbox that a request names. It gives messages
to one that was left, too, until the request expires; they come again after the ack wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from broker_policy.jetstream import Unsettled, api
from mas_nats import Agent
from mas_nats.pull import StandingPull
from mas_nats.transport import Incoming
from mas_nats.wire import subjects
from tests.cluster.conftest import NODES, Cluster

MESSAGES = 40


async def not_the_leader(cluster: Cluster, namespace: str, agent: str) -> int:
    """A node that does not lead the agent's consumer."""
    async with cluster.tenant(namespace) as tenant, asyncio.timeout(30):
        while True:
            try:
                info = await api(tenant, f"CONSUMER.INFO.{subjects.INBOX_STREAM}.{agent}", {})
                leader = cluster.number(info["cluster"]["leader"])
            except (KeyError, Unsettled, TimeoutError):
                await asyncio.sleep(0.1)
                continue
            return next(node for node in NODES if node != leader)


async def test_what_it_had_room_for_while_its_connection_was_lost_is_asked_for_once(cluster: Cluster) -> None:
    """Else half of its messages go to an inbox that it has left, until that request expires."""
    namespace = await cluster.namespace(["sender", "taker"], {"sender": ["taker"]})
    node = await not_the_leader(cluster, namespace, "taker")
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
