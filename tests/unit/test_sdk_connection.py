from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import nats.errors
import pytest
from sdk_worker import endpoint, eventually

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.ports import free_port
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import connection as connection_module
from mas_nats.config import Endpoint, TlsClientConfig
from mas_nats.connection import NatsConnection
from mas_nats.errors import ConfigurationError, IdentityRefused, PermissionDenied, Unavailable
from mas_nats.transport import Incoming, NoAnswer, NoResponders, NotSent
from mas_nats.wire.identity import Identity, Role

Open = Callable[..., Awaitable[NatsConnection]]


@pytest.fixture
def where(ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path) -> Endpoint:
    return endpoint(ca, tmp_path / "certs", nats_server, "a")


@pytest.fixture
async def open_connection() -> AsyncIterator[Open]:
    opened: list[NatsConnection] = []

    async def open_one(where: Endpoint, timeout: float = 5.0) -> NatsConnection:
        connection = NatsConnection(where, name="test")
        opened.append(connection)
        await connection.open(timeout)
        return connection

    yield open_one
    for connection in opened:
        await connection.close()


async def echo(connection: NatsConnection, subject: str = "echo") -> list[Incoming]:
    taken: list[Incoming] = []

    def answer(message: Incoming) -> None:
        taken.append(message)
        if message.data != b"silence":
            tasks.append(asyncio.ensure_future(connection.publish(message.reply, message.data)))

    tasks: list[asyncio.Future[None]] = []
    await connection.subscribe(subject, answer)
    await connection.flush()
    return taken


async def test_exchange(where: Endpoint, open_connection: Open):
    connection = await open_connection(where)
    await echo(connection)
    assert (await connection.exchange("echo", b"1", {"X": "y"}, 2)).data == b"1"


async def test_nobody_there_is_known_at_once(where: Endpoint, open_connection: Open):
    connection = await open_connection(where)
    before = time.monotonic()
    with pytest.raises(NoResponders):
        await connection.exchange("nobody", b"1", None, 5)
    assert time.monotonic() - before < 1


async def test_no_answer(where: Endpoint, open_connection: Open):
    connection = await open_connection(where)
    await echo(connection)
    with pytest.raises(NoAnswer):
        await connection.exchange("echo", b"silence", None, 0.1)


async def test_nothing_listens(ca: CertificateAuthority, tmp_path: Path, open_connection: Open):
    paths = ca.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path)
    where = Endpoint(f"tls://127.0.0.1:{free_port()}", TlsClientConfig(paths.ca, paths.cert, paths.key))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        await open_connection(where, 0.5)


async def test_foreign_ca_is_refused_at_once(
    nats_server: NatsServer, where: Endpoint, tmp_path: Path, open_connection: Open
):
    foreign = CertificateAuthority.create(tmp_path / "foreign")
    paths = foreign.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path / "f")
    tls = TlsClientConfig(where.tls.root_ca_path, paths.cert, paths.key)
    before = time.monotonic()
    with pytest.raises(IdentityRefused):
        await open_connection(Endpoint(nats_server.url, tls))
    assert time.monotonic() - before < 2


async def test_expired_certificate_is_refused_at_once(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path, open_connection: Open
):
    identity = Identity("mas", "default", Role.AGENT, "a")
    paths = ca.issue(identity, tmp_path / "old", lifetime=timedelta(seconds=-1))
    with pytest.raises(IdentityRefused):
        await open_connection(Endpoint(nats_server.url, TlsClientConfig(paths.ca, paths.cert, paths.key)))


async def test_server_of_another_ca(where: Endpoint, tmp_path: Path, open_connection: Open):
    foreign = CertificateAuthority.create(tmp_path / "foreign")
    paths = foreign.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path / "f")
    tls = TlsClientConfig(paths.ca, where.tls.client_cert_path, where.tls.client_key_path)
    with pytest.raises(ConfigurationError, match="not trusted"):
        await open_connection(Endpoint(where.url, tls))


async def test_server_that_offers_no_tls_is_told_nothing(where: Endpoint, open_connection: Open):
    heard: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConfigurationError, match="does not use TLS"):
        await open_connection(Endpoint(f"tls://127.0.0.1:{port}", where.tls), 2)
    server.close()
    assert not any(heard)


async def test_server_away_and_back(where: Endpoint, nats_server: NatsServer, open_connection: Open):
    connection = await open_connection(where)
    taken = await echo(connection)
    back = asyncio.Event()

    async def listener() -> None:
        back.set()

    connection.after_reconnect.append(listener)
    waiting = asyncio.ensure_future(connection.exchange("echo", b"silence", None, 30))
    await eventually(lambda: taken)
    await nats_server.process.stop()
    with pytest.raises(NoAnswer, match="lost"):
        await waiting
    with pytest.raises(NotSent):
        await connection.exchange("echo", b"1", None, 0.2)
    await nats_server.start()
    await asyncio.wait_for(back.wait(), 5)
    assert (await connection.exchange("echo", b"2", None, 2)).data == b"2"


async def test_a_server_that_stays_away_is_logged_and_so_is_its_return(
    where: Endpoint, nats_server: NatsServer, open_connection: Open, caplog: pytest.LogCaptureFixture
):
    await open_connection(where)
    await nats_server.process.stop()
    await eventually(lambda: "is away; waiting for it" in caplog.text, 30)
    assert "is back" not in caplog.text
    await nats_server.start()
    await eventually(lambda: "the broker is back" in caplog.text, 30)


async def test_denied_subject_is_an_error_at_once(
    ca: CertificateAuthority,
    start_nats: Callable[..., Awaitable[NatsServer]],
    tmp_path: Path,
    open_connection: Open,
):
    denying = """
        authorization {
            default_permissions { publish { deny: "secret" } }
            users: [ { user: u, password: p } ]
        }
        no_auth_user: u
    """
    server = await start_nats(extra=denying)
    connection = await open_connection(endpoint(ca, tmp_path / "c", server, "a"))
    with pytest.raises(PermissionDenied, match="secret"):
        await connection.exchange("secret", b"1", None, 5)


async def test_renewed_certificate_is_used_and_nothing_is_lost(
    where: Endpoint,
    ca: CertificateAuthority,
    nats_server: NatsServer,
    tmp_path: Path,
    open_connection: Open,
    caplog: pytest.LogCaptureFixture,
):
    connection, other = await open_connection(where), await open_connection(where)
    got: list[bytes] = []
    steps: list[str] = []

    async def before() -> None:
        steps.append("before")

    async def after() -> None:
        steps.append("after")

    connection.before_reconnect.append(before)
    connection.after_reconnect.append(after)
    await connection.subscribe("news", lambda message: got.append(message.data))
    await connection.flush()
    new = endpoint(ca, tmp_path / "new", nats_server, "a")
    for old_path, new_path in zip(where.tls.paths, new.tls.paths, strict=True):
        old_path.write_bytes(new_path.read_bytes())
    await eventually(lambda: steps == ["before", "after"])
    await other.publish("news", b"1")
    await eventually(lambda: got == [b"1"])
    assert "away" not in caplog.text


async def test_a_loss_is_told_before_anything_comes_from_the_next_connection(
    where: Endpoint, open_connection: Open
):
    connection = await open_connection(where)
    steps: list[str] = []

    async def after() -> None:
        steps.append("after")

    connection.at_loss.append(lambda: steps.append("loss" if not connection._client.is_connected else "?"))
    connection.after_reconnect.append(after)
    await connection._client.force_reconnect()
    await eventually(lambda: steps == ["loss", "after"])


async def test_half_written_certificate_waits(
    where: Endpoint, ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path, open_connection: Open
):
    connection = await open_connection(where)
    reconnected: list[int] = []

    async def after() -> None:
        reconnected.append(1)

    connection.after_reconnect.append(after)
    new = endpoint(ca, tmp_path / "new", nats_server, "a")
    where.tls.paths[1].write_bytes(new.tls.paths[1].read_bytes())
    await asyncio.sleep(1.3)  # one look at the files
    assert reconnected == []
    where.tls.paths[2].write_bytes(new.tls.paths[2].read_bytes())
    await eventually(lambda: reconnected)


def dying(met: asyncio.Event) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Greets, and resets the connection while TLS begins, as a server does that is just killed."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","tls_required":true}\r\n')
        await reader.read(1)
        writer.transport.abort()
        met.set()

    return greet


async def test_a_server_that_goes_away_while_tls_begins(where: Endpoint, open_connection: Open):
    met = asyncio.Event()
    server = await asyncio.start_server(dying(met), "127.0.0.1", 0)
    url = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            await open_connection(Endpoint(url, where.tls), 1)
    server.close()
    assert met.is_set()


async def test_closing_when_the_server_went_away_while_tls_began(
    where: Endpoint, nats_server: NatsServer, open_connection: Open
):
    connection, met = await open_connection(where), asyncio.Event()
    await nats_server.process.stop()
    server = await asyncio.start_server(dying(met), "127.0.0.1", nats_server.port)
    await asyncio.wait_for(met.wait(), 20)
    server.close()
    async with asyncio.timeout(20):
        await connection.close()


async def test_what_was_under_way_is_one_reason_to_try_another_node(monkeypatch: pytest.MonkeyPatch):
    """It ends all at once: if each sent the connection on, it might be back at the deaf node in the end."""
    nodes = Endpoint("tls://a:1,tls://b:1,tls://c:1", TlsClientConfig("ca", "certificate", "key"))
    connection, tried = NatsConnection(nodes, name="test"), list[None]()
    ended = asyncio.Event()

    async def unanswered(*_: object) -> Incoming:
        await ended.wait()
        raise NoAnswer("in vain")

    async def another() -> None:
        tried.append(None)

    monkeypatch.setattr(connection_module, "_DEAF", 0.0)
    monkeypatch.setattr(connection, "_exchange", unanswered)
    monkeypatch.setattr(connection._client, "force_reconnect", another)
    for number in (1, 2):  # the next node may be deaf, too
        ended.clear()
        asking = [asyncio.create_task(connection.exchange("a", b"", None, 10.0)) for _ in range(32)]
        await asyncio.sleep(0.01)
        ended.set()
        assert all(
            isinstance(each, NoAnswer) for each in await asyncio.gather(*asking, return_exceptions=True)
        )
        await asyncio.gather(*connection._tasks)
        assert len(tried) == number


async def test_what_ended_with_a_connection_says_nothing_about_the_next(monkeypatch: pytest.MonkeyPatch):
    nodes = Endpoint("tls://a:1,tls://b:1,tls://c:1", TlsClientConfig("ca", "certificate", "key"))
    connection = NatsConnection(nodes, name="test")

    async def connected(_: float) -> None: ...

    async def lost(*_: object, **__: object) -> Incoming:
        await asyncio.sleep(0.01)
        raise nats.errors.ConnectionReconnectingError

    monkeypatch.setattr(connection_module, "_DEAF", 0.0)
    monkeypatch.setattr(connection, "_connected", connected)
    monkeypatch.setattr(connection._client, "request", lost)
    with pytest.raises(NoAnswer, match="lost"):
        await connection.exchange("a", b"", None, 10.0)
    assert not connection._tasks


async def test_the_silence_of_a_connection_that_was_lost_is_not_that_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
):
    nodes = Endpoint("tls://a:1,tls://b:1,tls://c:1", TlsClientConfig("ca", "certificate", "key"))
    connection = NatsConnection(nodes, name="test")

    async def unanswered(*_: object) -> Incoming:
        raise NoAnswer("in vain")

    monkeypatch.setattr(connection, "_exchange", unanswered)
    with pytest.raises(NoAnswer):
        await connection.exchange("a", b"", None, 10.0)  # silent, and not for long enough
    await asyncio.sleep(0.02)
    connection._begin_anew()
    monkeypatch.setattr(connection_module, "_DEAF", 0.01)
    with pytest.raises(NoAnswer):
        await connection.exchange("a", b"", None, 10.0)
    assert not connection._tasks
