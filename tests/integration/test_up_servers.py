"""The two real servers: configuration, refusals, restart with data, kill, pause."""

from __future__ import annotations

import asyncio
import ssl
import stat

import nats
import nats.errors
import pytest
from nats.js.api import StreamConfig
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from broker_policy.embedded import durability
from broker_policy.embedded.errors import ServerDied
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import Identity, Role


@pytest.fixture
def connect_nats(ca, tmp_path):
    """Connect to a nats-server with a certificate of the CA, or of another one."""

    async def connect(server, authority=ca):
        paths = authority.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path / "client")
        context = ssl.create_default_context(cafile=str(ca.folder / "ca.pem"))
        context.load_cert_chain(paths.cert, paths.key)
        client = ResilientClient()
        await client.connect(server.url, tls=context, tls_hostname="localhost", allow_reconnect=False)
        return client

    return connect


# -- nats-server --------------------------------------------------------------------------------------
async def test_nats_keeps_what_was_stored_over_stop_and_kill(nats_server, connect_nats):
    nc = await connect_nats(nats_server)
    await nc.jetstream().add_stream(StreamConfig(name="S", subjects=["s"]))
    url = nats_server.url
    for count, end in enumerate((nats_server.stop, nats_server.kill), start=1):
        await nc.jetstream().publish("s", b"kept")
        await nc.close()
        if (stopping := end()) is not None:
            await stopping
        assert not nats_server.running
        await nats_server.start()
        assert nats_server.url == url
        nc = await connect_nats(nats_server)
        assert (await nc.jetstream().stream_info("S")).state.messages == count
    await nc.close()


async def test_nats_refuses_a_client_without_a_certificate(nats_server, ca):
    context = ssl.create_default_context(cafile=str(ca.folder / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError, nats.errors.Error)):
        await ResilientClient().connect(
            nats_server.url, tls=context, tls_hostname="localhost", allow_reconnect=False
        )


async def test_nats_refuses_a_certificate_of_another_authority(nats_server, connect_nats, tmp_path):
    other = CertificateAuthority.create(tmp_path / "other")
    with pytest.raises((ssl.SSLError, ConnectionError, nats.errors.Error)):
        await connect_nats(nats_server, other)


async def test_nats_configuration_is_private_and_listens_on_loopback(nats_server):
    assert stat.S_IMODE(nats_server.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(nats_server.log.stat().st_mode) & 0o077 == 0
    text = nats_server.config.read_text()
    assert f"listen: 127.0.0.1:{nats_server.port}" in text
    assert "\n  sync_interval: always\n" in text


async def test_durable_nats_has_no_findings_and_relaxed_has(nats_server, start_nats, connect_nats):
    assert await durability.monitor_findings(nats_server.monitor_url) == []
    relaxed = await start_nats(relaxed=True)
    (finding,) = await durability.monitor_findings(relaxed.monitor_url)
    assert "before it flushes" in finding.problem


async def test_a_stream_that_flushes_late_is_found_on_the_real_server(nats_server, connect_nats):
    nc = await connect_nats(nats_server)
    stream = b'{"name":"LATE","subjects":["late"],"storage":"file","num_replicas":1,"persist_mode":"async"}'
    answer = await nc.request("$JS.API.STREAM.CREATE.LATE", stream)
    assert b'"error"' not in answer.data, answer.data
    findings = await durability.monitor_findings(nats_server.monitor_url)
    assert [finding.server for finding in findings] == ["stream LATE of account $G"]
    await nc.close()


async def test_a_stopped_server_is_a_finding(nats_server):
    await nats_server.stop()
    (finding,) = await durability.monitor_findings(nats_server.monitor_url)
    assert "does not answer" in finding.problem


async def test_a_configuration_that_does_not_parse_says_where(start_nats):
    with pytest.raises(ServerDied, match="Parse error on line"):
        await start_nats(extra="nonsense {")


async def test_a_taken_port_says_so(nats_server, start_nats, tmp_path):
    with pytest.raises(ServerDied, match="address already in use"):
        await start_nats(folder=tmp_path / "second", port=nats_server.port)


async def test_a_folder_with_spaces_and_quotes_works(start_nats, start_redis, tmp_path):
    odd = tmp_path / 'a "quoted" folder'
    assert (await start_nats(folder=odd / "nats")).running
    assert (await start_redis(folder=odd / "redis")).running


async def test_a_paused_nats_answers_after_it_is_resumed(nats_server, connect_nats):
    nc = await connect_nats(nats_server)
    nats_server.pause()
    flushing = asyncio.create_task(nc.flush(timeout=30))
    assert (await asyncio.wait({flushing}, timeout=0.5))[0] == set()
    nats_server.resume()
    await flushing
    await nc.close()


# -- redis-server ----------------------------------------------------------------------------------------
async def test_redis_keeps_what_was_stored_over_stop_and_kill(redis_server):
    url = redis_server.url
    for count, end in enumerate((redis_server.stop, redis_server.kill), start=1):
        async with Redis.from_url(url) as client:
            await client.incr("kept")
        if (stopping := end()) is not None:
            await stopping
        assert not redis_server.running
        await redis_server.start()
        async with Redis.from_url(url) as client:
            assert await client.get("kept") == str(count).encode()


async def test_redis_asks_for_its_password_and_keeps_it_private(redis_server):
    at_once = Retry(NoBackoff(), 0)
    async with Redis(host="127.0.0.1", port=redis_server.port, retry=at_once) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()
    for path in (redis_server.password_file, redis_server.config):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    command = await asyncio.to_thread(open, f"/proc/{redis_server.pid}/cmdline", "rb")
    with command:
        assert redis_server.password.encode() not in command.read()


async def test_durable_redis_has_no_findings_and_others_have(redis_server, start_redis):
    async with Redis.from_url(redis_server.url, decode_responses=True) as client:
        assert await durability.redis_findings(client) == []
        await client.config_set("maxmemory-policy", "allkeys-lru")
        (finding,) = await durability.redis_findings(client)
        assert "maxmemory-policy is allkeys-lru" in finding.problem
    relaxed = await start_redis(relaxed=True)
    async with Redis.from_url(relaxed.url, retry=Retry(NoBackoff(), 0)) as client:
        (finding,) = await durability.redis_findings(client)
        assert "appendfsync is everysec" in finding.problem
        await relaxed.stop()
        (finding,) = await durability.redis_findings(client)
        assert "does not say" in finding.problem


async def test_a_server_that_does_not_say_yet_how_it_is_is_asked_more(nats_server, connect_nats, monkeypatch):
    nc = await connect_nats(nats_server)  # in an account in which nobody serves what is asked
    asked, answers = nc.publish, []

    async def answer(message):
        await message.respond(b'{"data": {"server_name": "n1"}}')

    async def publish(subject, *arguments, **options):
        if subject.startswith("$SYS."):
            answers.append(subject)
            if len(answers) == 2:
                await nc.subscribe(subject, cb=answer)
        await asked(subject, *arguments, **options)

    monkeypatch.setattr(nc, "publish", publish)
    assert await durability.server_variables(nc, timeout=10) == [{"server_name": "n1"}]
    assert len(answers) == 2
    await nc.close()
