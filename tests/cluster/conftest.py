"""Three real nats-servers, with proxies between them; one cluster for all tests of this folder."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from broker_policy.embedded.durability import monitor
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nats_server import server_name
from broker_policy.embedded.nodes import until_formed
from broker_policy.jetstream import Unsettled, stream_info
from broker_policy.tenants.connect import connect_tenant_admin
from mas_nats.resilient import ResilientClient
from tests.processes import children
from tests.route_proxies import RouteProxies
from tests.system import System

NODES = (1, 2, 3)


@dataclass
class Cluster(System):
    """A broker of three nodes, and what can come between them."""

    proxies: RouteProxies

    def url(self, node: int) -> str:
        """Where clients reach one node."""
        return self.broker.url.split(",")[node - 1]

    def number(self, name: str) -> int:
        """The number of the node that calls itself ``name``."""
        return {server_name(self.layout.node(number, 3)): number for number in NODES}[name]

    def signal(self, node: int, what: signal.Signals) -> None:
        """Send a signal to one node's process."""
        os.kill(children(self.broker.pid)[f"nats-{node}"], what)

    async def leader(self, client: ResilientClient, stream: str) -> int:
        """The node that leads a stream, waiting until there is one for certain."""
        async with asyncio.timeout(30):
            while True:
                try:
                    info = await stream_info(client, stream, timeout=1)
                    return self.number(info["cluster"]["leader"])
                except (Unsettled, TimeoutError):
                    await asyncio.sleep(0.1)

    async def whole(self) -> None:
        """Return when all nodes are there again and have caught up."""
        await until_formed(self.broker.monitor.split(","))

    def joined(self, node: int) -> set[int]:
        """The nodes that a node believes to be joined to."""
        routes = self._monitored(node, "/routez")["routes"] or []
        return {self.number(route["remote_name"]) for route in routes}

    def connected(self) -> set[str]:
        """The names of all connections that the nodes believe to be there."""
        answers = [self._monitored(node, "/connz?limit=10000") for node in NODES]
        return {each.get("name", "") for answer in answers for each in answer["connections"]}

    def worker_id(self, name: str) -> str:
        """What the worker's process ``name`` calls itself."""
        told = (self.layout.root / "logs" / f"{name}.log").read_text()
        return str(re.findall(rf"worker {name} \((\w+)\) serves", told)[-1])

    def _monitored(self, node: int, path: str) -> Mapping[str, Any]:
        return monitor(self.broker.monitor.split(",")[node - 1], path)

    @asynccontextmanager
    async def tenant_at(self, node: int, namespace: str) -> AsyncIterator[ResilientClient]:
        """A connection with full rights in the tenant account, to one node only."""
        endpoint = dataclasses.replace(self.broker.connection(self.layout, "controller"), url=self.url(node))
        client = await connect_tenant_admin(endpoint, self.material.controller, namespace)
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running broker of three nodes that these tests share; each takes a namespace of its own."""
    layout = Layout(tmp_path_factory.mktemp("cluster") / ".mas")
    proxies = RouteProxies(layout)
    System.up(layout.root, "--nodes", "3")
    running = Cluster(layout, proxies)
    yield running
    running.down()
    proxies.stop()
