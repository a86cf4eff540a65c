"""Nodes that die, halt, or are cut off, under load: nothing that was accepted is lost (promise 1)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker_policy.embedded.halt import halt
from mas_nats import AgentMessage
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from tests.cluster.conftest import NODES, Cluster
from tests.load import Handling, audit_of, send_all
from tests.processes import children, kill


class Traffic:
    """A sender and a receiver, and the longest time between two acceptances."""

    def __init__(self, cluster: Cluster, namespace: str, sender: Handling, receiver: Handling) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.sender = sender
        self.receiver = receiver
        self.accepted: set[str] = set()
        self.longest = 0.0
        self._last = time.monotonic()
        self._enough = asyncio.Event()

    async def flow(self) -> None:
        """Send until told that it is enough."""
        while not self._enough.is_set():
            self.accepted |= await send_all(
                self.sender, self.receiver.agent_id, 400, 32, progress=self._progress
            )

    async def _progress(self, _: int) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now

    async def end(self) -> None:
        """Stop sending, and see that all is handled and settled."""
        self._enough.set()


@asynccontextmanager
async def two_agents(
    cluster: Cluster, *, limits: Limits | None = None, receiving: type[Handling] = Handling
) -> AsyncIterator[tuple[str, Handling, Handling]]:
    """A namespace of their own, its sender, and its receiver, which the sender may send to."""
    namespace = await cluster.namespace(["sender", "receiver"], {"sender": ["receiver"]}, limits=limits)
    where = cluster.broker.url
    async with (
        Handling("sender", server_addr=where, tls=cluster.tls("sender", namespace)) as sender,
        receiving("receiver", server_addr=where, tls=cluster.tls("receiver", namespace)) as receiver,
    ):
        yield namespace, sender, receiver


@asynccontextmanager
async def traffic(cluster: Cluster, record_property: Any, *, settled: bool = True) -> AsyncIterator[Traffic]:
    """Send for the length of the block; afterwards nothing is missing, in the inbox or in the audit.

    Without ``settled`` the audit's last outcomes are not waited for, which can take half a minute.
    """
    async with two_agents(cluster, limits=Limits(ack_wait=5)) as (namespace, sender, receiver):
        running = Traffic(cluster, namespace, sender, receiver)
        flowing = asyncio.create_task(running.flow())
        while not running.longest:
            await asyncio.sleep(0.01)
        try:
            yield running
        finally:
            await running.end()
            await flowing
        assert await receiver.wait_handled(running.accepted, 60) == set()
        await cluster.whole()
        # After a change of leader the server's word on deliveries is behind until the next one.
        running.accepted.add(await sender.send("receiver", "work", {"n": -1}))
        if settled:
            audit = await audit_of(cluster, namespace, running.accepted)
            assert not [entry for entry in audit["entries"] if entry["k"] == "a"]  # no alarm
        record_property("longest pause", f"{running.longest:.1f} s")
        record_property("accepted", len(running.accepted))


async def progress(running: Traffic, more: int = 200) -> None:
    """Wait until that many more messages were handled."""
    wanted = len(running.receiver.handled) + more
    async with asyncio.timeout(60):
        while len(running.receiver.handled) < wanted:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("settled", [False, pytest.param(True, marks=pytest.mark.cluster)])
async def test_the_leader_of_the_log_is_killed(
    cluster: Cluster, record_property: Any, *, settled: bool
) -> None:
    async with (
        traffic(cluster, record_property, settled=settled) as running,
        cluster.tenant(running.namespace) as tenant,
    ):
        leader = await cluster.leader(tenant, subjects.INBOX_STREAM)
        kill(cluster.broker.pid, f"nats-{leader}")
        await progress(running)
        assert await cluster.leader(tenant, subjects.INBOX_STREAM)
    assert running.longest < 30


@pytest.mark.cluster
async def test_a_follower_is_killed(cluster: Cluster, record_property: Any) -> None:
    async with traffic(cluster, record_property) as running, cluster.tenant(running.namespace) as tenant:
        leader = await cluster.leader(tenant, subjects.INBOX_STREAM)
        follower = next(node for node in NODES if node != leader)
        kill(cluster.broker.pid, f"nats-{follower}")
        await progress(running)
    assert running.longest < 30


@pytest.mark.parametrize("who", [pytest.param("leader", marks=pytest.mark.cluster), "follower"])
async def test_a_node_is_paused(cluster: Cluster, who: str, record_property: Any) -> None:
    """It notices nothing, and its connections stay: what it says when it goes on may be out of date."""
    async with traffic(cluster, record_property) as running, cluster.tenant(running.namespace) as tenant:
        leader = await cluster.leader(tenant, subjects.INBOX_STREAM)
        node = leader if who == "leader" else next(each for each in NODES if each != leader)
        cluster.signal(node, signal.SIGSTOP)
        try:
            await asyncio.sleep(3)  # what is tested is a length of time
        finally:
            cluster.signal(node, signal.SIGCONT)
        await progress(running)
    assert running.longest < 30


@pytest.mark.cluster
async def test_nodes_are_restarted_one_by_one(cluster: Cluster, record_property: Any) -> None:
    """As for an upgrade. No error reaches the agents' own code: the SDK repeats."""
    enough = asyncio.Event()
    accepted: set[str] = set()

    async def flow(sender: Handling) -> None:
        while not enough.is_set():
            accepted.add(await sender.send("receiver", "work", {"n": 1}, timeout=60))

    async with two_agents(cluster) as (_, sender, receiver):
        flowing = [asyncio.create_task(flow(sender)) for _ in range(16)]
        for node in NODES:
            before = len(accepted)
            cluster.signal(node, signal.SIGTERM)
            await asyncio.sleep(0.2)
            await cluster.whole()
            async with asyncio.timeout(30):
                while len(accepted) < before + 50:
                    await asyncio.sleep(0.02)
        enough.set()
        await asyncio.gather(*flowing)
        assert await receiver.wait_handled(accepted, 60) == set()
    record_property("accepted", len(accepted))


@pytest.mark.cluster
async def test_all_nodes_are_killed_at_once(cluster: Cluster, record_property: Any) -> None:
    async with traffic(cluster, record_property) as running:
        for node in NODES:
            kill(cluster.broker.pid, f"nats-{node}")
        await progress(running)


async def test_a_node_that_fell_silent_is_given_up(cluster: Cluster) -> None:
    """Until it is, others send it its share of the calls, for the workers that they believe to be on it."""
    with cluster.proxies.isolated(1, silent=True):
        async with asyncio.timeout(12):
            while 1 in cluster.joined(2) | cluster.joined(3):
                await asyncio.sleep(0.1)
        assert cluster.joined(2) == {3}
    await cluster.whole()


@pytest.mark.cluster
async def test_a_worker_that_fell_silent_is_given_up(cluster: Cluster) -> None:
    """As for a node: its machine may be lost, and nothing has closed its connections."""
    name, worker = cluster.worker_id("w1"), children(cluster.broker.pid)["w1"]
    own = {each for each in cluster.connected() if each.startswith(name)}
    assert len(own) >= 2  # of itself, and of a namespace
    halt(worker)
    try:
        async with asyncio.timeout(35):
            while own & cluster.connected():
                await asyncio.sleep(0.2)
    finally:
        os.kill(worker, signal.SIGCONT)
    async with asyncio.timeout(15):
        while not own <= cluster.connected():
            await asyncio.sleep(0.2)


_BLOCKED = 36.0


class _Blocking(Handling):
    """Its first message halts all on its event loop, for longer than a server waits for its clients."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.now = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        if not self.handled:
            await self.now.wait()  # the sender is on the same event loop: it must have its verdicts
            time.sleep(_BLOCKED)  # noqa: ASYNC251 - that is what is tested
        await super().on_message(message)


@pytest.mark.cluster
async def test_a_handler_that_blocks_for_longer_than_that_keeps_its_message(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection is lost meanwhile; nobody else gets the message, and it is acknowledged afterwards."""
    limits = Limits(ack_wait=10)
    async with two_agents(cluster, limits=limits, receiving=_Blocking) as (namespace, sender, receiver):
        sending = (sender.send("receiver", "work", {"n": n}, timeout=60) for n in range(2))
        sent = set(await asyncio.gather(*sending))
        assert isinstance(receiver, _Blocking)
        receiver.now.set()
        assert await receiver.wait_handled(sent, _BLOCKED + 30) == set()
        async with asyncio.timeout(10):
            while "stale connection" not in caplog.text:  # both come in the moment in which the loop goes on
                await asyncio.sleep(0.05)
        audit = await audit_of(cluster, namespace, sent)
    assert dict(receiver.handled) == dict.fromkeys(sent, 1)
    assert {each["outcome"] for one in sent for each in audit["decisions"][one]} == {"h"}


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
async def test_the_leader_is_cut_off(cluster: Cluster, record_property: Any, *, silent: bool) -> None:
    """Alone it goes on for seconds as if it led; what it says then must not count."""
    async with traffic(cluster, record_property) as running, cluster.tenant(running.namespace) as tenant:
        leader = await cluster.leader(tenant, subjects.INBOX_STREAM)
        with cluster.proxies.isolated(leader, silent=silent):
            await progress(running)
