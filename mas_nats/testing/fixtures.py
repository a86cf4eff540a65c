"""pytest fixtures: ``pytest_plugins = ["mas_nats.testing.fixtures"]`` in a top-level ``conftest.py``.

``memory_broker`` makes brokers in memory, ``real_broker`` namespaces of their own on a real one, which is
started once for the test run. Both are called alike, so that one test can have either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from mas_nats.policy.document import Limits
from mas_nats.testing import real
from mas_nats.testing.broker import MemoryBroker
from mas_nats.testing.declared import Agents, Reach, wanted
from mas_nats.testing.real import RealBroker
from mas_nats.wire.identity import DEFAULT_NAMESPACE

B_co = TypeVar("B_co", covariant=True)


class MakeBroker(Protocol[B_co]):
    """Makes a broker with these agents; the arguments are those of ``MemoryBroker``."""

    async def __call__(  # noqa: D102
        self,
        agents: Agents,
        *,
        allow: Reach | None = None,
        block: Reach | None = None,
        limits: Limits | None = None,
    ) -> B_co: ...


@pytest.fixture
def memory_broker() -> Iterator[MakeBroker[MemoryBroker]]:
    """Makes started brokers in memory. They end with the test."""
    made: list[MemoryBroker] = []

    async def make(
        agents: Agents,
        *,
        allow: Reach | None = None,
        block: Reach | None = None,
        limits: Limits | None = None,
    ) -> MemoryBroker:
        made.append(MemoryBroker(agents, allow=allow, block=block, limits=limits).start())
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture(scope="session")
def real_broker_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a real broker that runs as long as the test run. Takes some seconds to start."""
    with real.running(tmp_path_factory.mktemp("mas") / ".mas") as folder:
        yield folder


@pytest.fixture
def real_broker(real_broker_folder: Path) -> MakeBroker[RealBroker]:
    """Makes namespaces on a real broker."""

    async def make(
        agents: Agents,
        *,
        allow: Reach | None = None,
        block: Reach | None = None,
        limits: Limits | None = None,
    ) -> RealBroker:
        content = wanted(agents, allow, block, limits, DEFAULT_NAMESPACE)
        return await real.namespace(real_broker_folder, content)

    return make
