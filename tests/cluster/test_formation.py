"""Three nodes from one folder: what they are, who may join, and what may not change."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nodes import read_routes, settle
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.tenants.streams import control_streams, tenant_streams
from mas_nats import ConfigurationError
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from mas_nats.wire.identity import Role
from tests.cluster.conftest import Cluster
from tests.processes import children
from tests.system import mas


def test_three_nodes_with_folders_ports_and_processes_of_their_own(cluster: Cluster) -> None:
    broker = cluster.broker
    assert broker.nodes == len(set(broker.url.split(","))) == len(set(broker.monitor.split(","))) == 3
    running = children(broker.pid)
    assert {"nats-1", "nats-2", "nats-3", "w1", "w2", "signer", "redis-server"} == set(running)
    for number in (1, 2, 3):
        assert (cluster.layout.node(number, 3) / "accounts").is_dir()


def test_the_number_of_nodes_cannot_change(cluster: Cluster) -> None:
    assert settle(cluster.layout, None) == settle(cluster.layout, 3) == 3
    with pytest.raises(ConfigurationError, match=r"made with 3 nodes.*cannot have one node.*--folder"):
        settle(cluster.layout, 1)


def test_a_number_that_cannot_be(tmp_path: Path) -> None:
    refused = mas("up", "--detach", "--nodes", "2", "--folder", str(tmp_path / ".mas"), check=False)
    assert refused.returncode == 1
    assert "2 nodes: there can be 1 or 3" in refused.stderr


def test_one_node_stays_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert settle(layout, None) == 1
    (layout.node(1, 1) / "jetstream").mkdir(parents=True)
    assert settle(layout, None) == 1
    with pytest.raises(ConfigurationError, match=r"made with one node.*cannot have 3 nodes"):
        settle(layout, 3)


def test_routes_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.routes.write_text('["1"]')
    with pytest.raises(ConfigurationError, match=r"routes\.json is not of the form"):
        read_routes(layout)


async def test_every_stream_and_consumer_is_on_three_nodes(cluster: Cluster) -> None:
    namespace = await cluster.namespace(["a"], {})
    async with cluster.tenant(namespace) as tenant:
        js = tenant.jetstream()
        streams = {info.config.name: info for info in await js.streams_info()}
        assert streams.keys() == {config.name for config in tenant_streams(Limits())}
        for info in streams.values():
            assert info.config.num_replicas == 3
            assert info.cluster is not None
            assert len(info.cluster.replicas or []) == 2
        for consumer in await js.consumers_info(subjects.INBOX_STREAM):
            assert consumer.cluster is not None
            assert len(consumer.cluster.replicas or []) == 2
    async with cluster.control() as (_, store):
        control = {info.config.name: info for info in await store._nc.jetstream().streams_info()}
    assert control.keys() == {config.name for config in control_streams()}
    assert all(info.config.num_replicas == 3 for info in control.values())


async def test_only_a_node_may_open_a_route(cluster: Cluster) -> None:
    """Who opens a route is a server and may do everything. The agents' CA is not enough."""
    port = json.loads(cluster.layout.ports.read_bytes())["nodes"][0]["route"]
    tls = cluster.tls("intruder", "default", role=Role.AGENT)
    agent = CertificatePaths(*map(Path, tls.paths))
    server = CertificatePaths(cluster.layout.ca, cluster.layout.server_cert, cluster.layout.server_key)
    policy = cluster.layout.policy_certificate("controller")
    for shown in (agent, server, policy, None):
        assert not await _taken_for_a_node(port, cluster.layout, shown)
    assert await _taken_for_a_node(port, cluster.layout, cluster.layout.route_certificate)  # control


async def _taken_for_a_node(port: int, layout: Layout, shown: CertificatePaths | None) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(layout.route_certificate.ca)
    if shown is not None:
        context.load_cert_chain(shown.cert, shown.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.transport.pause_reading()
        await writer.start_tls(context, server_hostname="127.0.0.1")
        line = await asyncio.wait_for(reader.readline(), 5)  # INFO: with TLS 1.3 a refusal comes only here
    except (OSError, ssl.SSLError):
        return False
    finally:
        writer.transport.abort()
    return line.startswith(b"INFO ")
