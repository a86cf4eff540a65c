"""A whole installation for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from installation import Installation

from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.material import Material, create_material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return create_material(tmp_path_factory.mktemp("installation") / "keys")


@pytest.fixture
async def installation(
    start_nats: Any, material: Material, ca: CertificateAuthority, tmp_path: Path
) -> AsyncIterator[Installation]:
    """Two tenants with two agents each, and something in every stream."""
    server = await start_nats(material.public, relaxed=True)
    async with AsyncExitStack() as stack:
        running = Installation([server], ca, material, tmp_path / "certificates", stack)
        await running.open()
        yield running
