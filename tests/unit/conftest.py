"""A connection to a plain nats-server with everything in one account."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.config import Endpoint, TlsClientConfig
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.conftest import Shared

Connect = Callable[[], Awaitable[ResilientClient]]


@pytest.fixture(scope="package", autouse=True)
def _nothing_beside(shared: Shared) -> None:
    """What other tests shared serves its namespaces until it is stopped, and nothing here needs it."""
    shared.down()


@pytest.fixture
async def connect(
    nats_server: NatsServer, ca: CertificateAuthority, tmp_path: Path
) -> AsyncIterator[Connect]:
    """Opens connections that survive what the workers' survive."""
    identity = Identity(DEFAULT_TRUST_DOMAIN, "default", Role.POLICY, "worker")
    paths = ca.issue(identity, tmp_path / "worker")
    endpoint = Endpoint(nats_server.url, TlsClientConfig(paths.ca, paths.cert, paths.key))
    opened: list[ResilientClient] = []

    async def ignore(_: Exception) -> None:
        return None

    async def connected() -> ResilientClient:
        client = ResilientClient()
        await client.connect_within(
            5, servers=[endpoint.url], tls=endpoint.context(), tls_hostname="localhost", error_cb=ignore
        )
        opened.append(client)
        return client

    yield connected
    for client in opened:
        await client.close()


@pytest.fixture
async def nc(connect: Connect) -> ResilientClient:
    """One of them."""
    return await connect()
