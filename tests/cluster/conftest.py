"""Three real nats-servers, with proxies between them; one cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from broker_policy.embedded.layout import Layout
from tests.route_proxies import RouteProxies
from tests.system import System


@dataclass
class Cluster(System):
    """A broker of three nodes, and what can come between them."""

    proxies: RouteProxies


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running broker of three nodes that these tests share; each takes a namespace of its own."""
    layout = Layout(tmp_path_factory.mktemp("cluster") / ".mas")
    proxies = RouteProxies(layout)
    System.up(layout.root, "--nodes", "3")
    running = Cluster(layout, proxies)
    yield running
    running.down()
    proxies.stop()
