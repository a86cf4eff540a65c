"""Fixtures for every suite: a CA, and the two real servers.

The servers start in well under a second, so a test has its own. A test that needs other options takes the
``start_nats`` or ``start_redis`` factory. Whatever a test leaves running is killed at its end, and dies with
the test run in any case.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.nats_server import NatsServer, ServerIdentity
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.pki import CertificateAuthority
from tests.system import System

# A busy machine is slow, which says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class _AsTheyFail:
    """Names each failed test at once: the summary comes many minutes later."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f" failed: {report.nodeid} ({report.when}, {report.duration:.1f} s)")


def pytest_configure() -> None:
    """Heed interrupts: a run in the background ignores them, and so would programs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    if (terminal := plugins.get_plugin("terminalreporter")) is not None:
        plugins.register(_AsTheyFail(terminal))


def pytest_collection_finish() -> None:
    """A look at all that thousands of tests import holds up what is measured by a third of a second."""
    gc.collect()
    gc.freeze()


StartNats = Callable[..., Awaitable[NatsServer]]
StartRedis = Callable[..., Awaitable[RedisServer]]


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """The CA of this test run."""
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def server_certificate(
    ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> CertificatePaths:
    """A certificate for servers on this machine."""
    return ca.issue_server(["localhost"], ["127.0.0.1"], tmp_path_factory.mktemp("server-certificate"))


Server = TypeVar("Server", NatsServer, RedisServer)


async def _listening(make: Callable[[], Server], started: list[Server], *, tries: int) -> Server:
    """Start a server; on another port where somebody else took the free one meanwhile."""
    while True:
        server = make()
        started.append(server)
        tries -= 1
        try:
            await server.start()
        except ServerDied as died:
            if not tries or "already in use" not in str(died):
                raise
        else:
            return server


@pytest.fixture
async def start_nats(tmp_path: Path, server_certificate: CertificatePaths) -> AsyncIterator[StartNats]:
    """Start a nats-server: ``await start_nats(public)``, further options as for ``NatsServer``."""
    started: list[NatsServer] = []

    async def start(public: ServerIdentity | str = "", **options: Any) -> NatsServer:
        options.setdefault("folder", tmp_path / f"nats{len(started) or ''}")
        paths = server_certificate

        def make() -> NatsServer:
            return NatsServer(
                public=public, server_cert=paths.cert, server_key=paths.key, ca=paths.ca, **options
            )

        return await _listening(make, started, tries=1 if options.get("port") else 3)

    yield start
    for server in started:
        server.kill()


@pytest.fixture
async def start_redis(tmp_path: Path) -> AsyncIterator[StartRedis]:
    """Start a redis-server: ``await start_redis()``, options as for ``RedisServer``."""
    started: list[RedisServer] = []

    async def start(**options: Any) -> RedisServer:
        options.setdefault("folder", tmp_path / f"redis{len(started) or ''}")
        tries = 1 if options.get("port") else 3
        return await _listening(lambda: RedisServer(**options), started, tries=tries)

    yield start
    for server in started:
        server.kill()


@pytest.fixture
async def nats_server(start_nats: StartNats) -> NatsServer:
    """A nats-server with mutual TLS and JetStream but without operator and accounts."""
    return await start_nats()


@pytest.fixture
async def redis_server(start_redis: StartRedis) -> RedisServer:
    """A redis-server with the settings of the audit store."""
    return await start_redis()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A connection to it."""
    client = Redis.from_url(redis_server.url, socket_timeout=5)
    yield client
    await client.aclose()


class Shared:
    """A running broker that tests share, until it has so many namespaces that they cost more than a start."""

    MOST = 100
    """Those of the tests before are not served any more, but have their streams."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._system: System | None = None

    def system(self) -> System:
        """The one, or another."""
        if self._system is not None and len(self._system.namespaces) >= self.MOST:
            self.down()
        if self._system is None:
            self._system = System.up(self._folders.mktemp("system") / ".mas")
        return self._system

    def down(self) -> None:
        """Stop it."""
        if self._system is not None:
            self._system.down()
        self._system = None


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """What ``system`` takes its broker from."""
    found = Shared(tmp_path_factory)
    yield found
    found.down()


@pytest.fixture
def system(shared: Shared) -> Iterator[System]:
    """A running broker; each test takes a namespace of its own, which nobody serves after it."""
    found = shared.system()
    before = set(found.namespaces)
    yield found
    if made := found.namespaces - before:
        with ThreadPoolExecutor(1) as thread:  # beside the loop of the test, which may go on
            thread.submit(asyncio.run, found.without_policy(made, confirm=False)).result()
