"""``MASServer``: the program of the seed, permissions at run time, given certificates, a joined Redis."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import BaseModel

from broker_policy import AgentDefinition, GatewaySettings, MASServer, MASServerSettings, TlsConfig
from broker_policy.embedded.errors import NotDurable
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.ports import LOOPBACK, free_port
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import Agent, AgentMessage, TlsClientConfig
from mas_nats.errors import ConfigurationError, IdentityRefused, PermissionDenied, Refused, Unavailable
from mas_nats.policy.governance import Role
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity
from mas_nats.wire.identity import Role as HolderRole
from mas_nats.wire.verdict import Decision
from tests.system import mas


class Ask(BaseModel):
    question: str


class DeskState(BaseModel):
    answered: int = 0


class HelpDesk(Agent[DeskState]):
    @Agent.on("ask", model=Ask)
    async def handle_ask(self, message: AgentMessage, payload: Ask) -> None:
        await self.update_state({"answered": self.state.answered + 1})
        await self.send_reply_envelope(message, "answer", {"text": f"about: {payload.question}"})


def issue(authority: CertificateAuthority, agent: str, folder: Path) -> TlsClientConfig:
    identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, HolderRole.AGENT, agent)
    paths = authority.issue(identity, folder, flat=True)
    return TlsClientConfig(paths.ca, paths.cert, paths.key)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CertificateAuthority:
    """Somebody else's CA, and what it issued in certs/; the current folder is the program's."""
    monkeypatch.chdir(tmp_path)
    made = CertificateAuthority.create(tmp_path / "authority-of-theirs")
    made.issue_server([], [LOOPBACK], tmp_path / "certs")
    for agent in ("helpdesk", "router"):
        issue(made, agent, tmp_path / "certs")
    return made


def agent_tls(agent: str) -> TlsClientConfig:
    return TlsClientConfig(
        root_ca_path="certs/ca.pem",
        client_cert_path=f"certs/{agent}.pem",
        client_key_path=f"certs/{agent}.key",
    )


def seed_server(port: int, gateway: GatewaySettings | None = None) -> MASServer:
    """As the seed's README has it, with a port that is free."""
    return MASServer(
        settings=MASServerSettings(
            listen_addr=f"127.0.0.1:{port}",
            tls=TlsConfig(
                server_cert_path="certs/server.pem",
                server_key_path="certs/server.key",
                client_ca_path="certs/ca.pem",
            ),
            agents={
                "helpdesk": AgentDefinition(agent_id="helpdesk", capabilities=["qa"], metadata={}),
                "router": AgentDefinition(agent_id="router", capabilities=[], metadata={}),
            },
        ),
        gateway=gateway or GatewaySettings(),
    )


async def test_the_program_of_the_seed(authority: CertificateAuthority):
    server = seed_server(free_port())
    await server.start()
    try:
        desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=agent_tls("helpdesk"))
        router: Agent[dict[str, object]] = Agent("router", tls=agent_tls("router"))
        async with desk, router:
            assert await router.discover(capabilities=["qa"]) == []
            with pytest.raises(PermissionDenied):
                await router.request("helpdesk", "ask", {"question": "before"}, timeout=10)

            begun = time.monotonic()
            await server.authz.set_permissions("router", allowed_targets=["helpdesk"])
            took = time.monotonic() - begun
            reply = await router.request("helpdesk", "ask", {"question": "now"}, timeout=10)
            print(f"set_permissions: {1000 * took:.1f} ms")
            assert reply.data["text"] == "about: now"
            assert [match.agent_id for match in await router.discover(capabilities=["qa"])] == ["helpdesk"]
            assert took < 1.0

            begun = time.monotonic()
            await server.authz.set_permissions("router", blocked_targets=["helpdesk"])
            assert time.monotonic() - begun < 1.0
            with pytest.raises(PermissionDenied, match="blocked"):
                await router.request("helpdesk", "ask", {"question": "after"}, timeout=10)
            said = await server.authz.permissions("router")
            assert (said.allowed_targets, said.blocked_targets) == (("helpdesk",), ("helpdesk",))
            assert desk.state.answered == 1
        assert "intact" in mas("audit", "verify", "--folder", str(Path.cwd() / ".mas")).stdout
    finally:
        await server.stop()


async def test_roles_hold_on_a_running_broker_and_a_block_beats_them(authority: CertificateAuthority):
    settings = dataclasses.replace(
        seed_server(free_port()).settings,
        roles={"clerk": Role(permissions=("send:help*",), agents=("router",))},
    )
    async with MASServer(settings=settings) as server:
        desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=agent_tls("helpdesk"))
        async with desk, Agent("router", tls=agent_tls("router")) as router:
            reply = await router.request("helpdesk", "ask", {"question": "?"}, timeout=10)
            assert reply.data["text"] == "about: ?"
            assert [match.agent_id for match in await router.discover(capabilities=["qa"])] == ["helpdesk"]
            await server.authz.set_permissions("router", blocked_targets=["*"])
            with pytest.raises(PermissionDenied, match="a block beats every role"):
                await router.request("helpdesk", "ask", {"question": "?"}, timeout=10)
            assert await router.discover(capabilities=["qa"]) == []
        told = mas("policy", "check", "router", "helpdesk", "--folder", str(Path.cwd() / ".mas"), check=False)
        assert told.returncode == 1
        assert "AUTHZ_DENIED by blocked_targets" in told.stdout


async def test_roles_and_rules_about_others_at_run_time(authority: CertificateAuthority):
    port = free_port()
    async with seed_server(port) as server:
        desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=agent_tls("helpdesk"))
        async with desk, Agent("router", tls=agent_tls("router")) as router:
            with pytest.raises(PermissionDenied):
                await router.send("helpdesk", "note", {})
            await server.authz.set_role("clerk", ["send:help*"], ["router"])
            assert (await server.authz.roles())["clerk"].agents == ("router",)
            reply = await router.request("helpdesk", "ask", {"question": "?"}, timeout=10)
            assert reply.data["text"] == "about: ?"
            await server.authz.remove_role("clerk")
            with pytest.raises(PermissionDenied):
                await router.send("helpdesk", "note", {})
        for wrong in (["send:a.b"], ["read:helpdesk"]):
            with pytest.raises(ConfigurationError, match="role clerk is wrong"):
                await server.authz.set_role("clerk", wrong, ["router"])
        await server.authz.set_permissions("sales/router", allowed_targets=["helpdesk"])
        for sender, target in (("sales/router", "billing/desk"), ("router", "default/helpdesk")):
            with pytest.raises(ConfigurationError, match="would be wrong"):
                await server.authz.set_permissions(sender, allowed_targets=[target])
    async with seed_server(port) as server:
        assert (await server.authz.permissions("sales/router")).allowed_targets == ("helpdesk",)
        assert await server.authz.roles() == {}


async def test_what_the_gateway_s_settings_say_holds(authority: CertificateAuthority):
    gateway = GatewaySettings(
        rate_limit={"per_minute": 3},
        dlp={"rules": [{"id": "file", "type": "file", "pattern": "FILE-[0-9]{4}", "action": "block"}]},
    )
    async with seed_server(free_port(), gateway) as server:
        await server.authz.set_permissions("router", allowed_targets=["helpdesk"])
        async with Agent("router", tls=agent_tls("router")) as router:
            with pytest.raises(Refused) as caught:
                await router.send("helpdesk", "note", {"text": "see FILE-1234"})
            assert caught.value.verdict.decision is Decision.DLP_BLOCKED
            assert "FILE-1234" not in str(caught.value)
            with contextlib.suppress(Refused):  # the refused one may have been counted
                for number in range(3):
                    await router.send("helpdesk", "note", {"text": f"note {number}"})
            with pytest.raises(Refused) as caught:
                await router.send("helpdesk", "note", {"text": "one too many"})
            assert caught.value.verdict.decision is Decision.RATE_LIMITED


async def test_permissions_at_run_time_outlive_a_restart(authority: CertificateAuthority):
    port = free_port()
    async with seed_server(port) as server:
        await server.authz.set_permissions("router", allowed_targets=["helpdesk"])
    async with seed_server(port) as server:
        assert (await server.authz.permissions("router")).allowed_targets == ("helpdesk",)
        with pytest.raises(ConfigurationError, match="no agent 'nobody'"):
            await server.authz.set_permissions("nobody", allowed_targets=["helpdesk"])
        with pytest.raises(ConfigurationError, match="permissions of router are wrong"):
            await server.authz.set_permissions("router", allowed_targets=["a.b"])
        with pytest.raises(RuntimeError, match="started already"):
            await server.start()
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.authz


async def test_the_server_shows_the_given_certificate_and_trusts_the_given_ca(
    authority: CertificateAuthority,
):
    async with seed_server(free_port()) as server:
        shown = x509.load_pem_x509_certificate(await served_certificate(server.url))
        assert shown.issuer == authority.certificate.subject
        assert shown.serial_number == serial("certs/server.pem")
        foreign = CertificateAuthority.create(Path("foreign"))
        impostor = issue(foreign, "router", Path("foreign-certs"))
        tls = TlsClientConfig("certs/ca.pem", impostor.client_cert_path, impostor.client_key_path)
        with pytest.raises((IdentityRefused, Unavailable)):
            async with Agent("router", tls=tls):
                pass
        async with Agent("router", tls=agent_tls("router")):  # the control: the right CA
            pass


async def test_a_replaced_server_certificate_is_in_use_a_moment_later(authority: CertificateAuthority):
    async with seed_server(free_port()) as server:
        before = serial("certs/server.pem")
        authority.issue_server([], [LOOPBACK], Path("certs"))
        assert serial("certs/server.pem") != before
        async with asyncio.timeout(15):
            while x509.load_pem_x509_certificate(
                await served_certificate(server.url)
            ).serial_number != serial("certs/server.pem"):
                await asyncio.sleep(0.1)
        async with Agent("router", tls=agent_tls("router")):
            pass
        done = mas("keys", "rotate", "tls-server", "--folder", str(Path.cwd() / ".mas"), check=False)
        assert done.returncode == 1
        assert "were given" in done.stderr


async def test_a_folder_goes_back_to_its_own_ca(authority: CertificateAuthority):
    async with seed_server(free_port()):
        pass
    settings = MASServerSettings(
        listen_addr=f"localhost:{free_port()}", agents={"router": AgentDefinition("router")}
    )
    async with MASServer(settings=settings):
        with pytest.raises((IdentityRefused, Unavailable, ConfigurationError)):
            async with Agent("router", tls=agent_tls("router")):
                pass
        mas("certs", "agent", "router", "--folder", str(Path.cwd() / ".mas"))
        async with Agent("router"):
            pass


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda: Path("certs/ca.pem").write_bytes(Path("other/ca.pem").read_bytes()),
            "would refuse the server",
        ),
        (lambda: Path("certs/server.key").write_bytes(Path("certs/router.key").read_bytes()), "with key"),
        (lambda: Path("certs/server.pem").unlink(), "cannot be read"),
        (lambda: Path("certs/ca.pem").write_text("no certificate"), "cannot be used"),
    ],
)
async def test_files_that_agents_could_not_use_are_refused_at_once(authority, break_it, words):
    CertificateAuthority.create(Path("other"))
    break_it()
    with pytest.raises(ConfigurationError, match=words):
        await seed_server(free_port()).start()


async def test_a_redis_that_answers_is_joined_and_stays_the_one(authority: CertificateAuthority):
    theirs = RedisServer(Path("redis-of-theirs"))
    await theirs.start()
    port, gateway = free_port(), GatewaySettings(redis={"url": theirs.url, "socket_timeout": 5})
    try:
        async with seed_server(port, gateway) as server:
            await server.authz.set_permissions("router", allowed_targets=["helpdesk"])
            broker = Broker.read(Layout(Path.cwd() / ".mas"))
            assert f":{theirs.port}/" in broker.redis
            assert theirs.password not in Path(".mas/endpoint.json").read_text()
            desk = HelpDesk("helpdesk", capabilities=["qa"], state_model=DeskState, tls=agent_tls("helpdesk"))
            async with desk, Agent("router", tls=agent_tls("router")) as router:
                await router.request("helpdesk", "ask", {"question": "?"}, timeout=10)
            assert "intact" in mas("audit", "verify", "--folder", str(Path.cwd() / ".mas")).stdout
        assert not Path(".mas/redis/redis.conf").exists()
        done = mas("backup", "x", "--without-keys", "--folder", str(Path.cwd() / ".mas"), check=False)
        assert (done.returncode, "not this folder's to halt" in done.stderr) == (1, True)
        with pytest.raises(ConfigurationError, match="name that one"):
            await seed_server(port).start()
    finally:
        await theirs.stop()
    with pytest.raises(ConfigurationError, match="does not answer"):
        await seed_server(port, gateway).start()


async def test_a_redis_that_refuses_says_why_it_is_not_joined(authority: CertificateAuthority):
    theirs = RedisServer(Path("redis-of-theirs"))
    await theirs.start()
    url = theirs.url.replace(theirs.password, "wrong")
    try:
        with pytest.raises(ConfigurationError, match=r"does not answer.*invalid username-password"):
            await seed_server(free_port(), GatewaySettings(redis={"url": url})).start()
    finally:
        await theirs.stop()


async def test_a_redis_that_would_lose_the_audit_is_not_joined(authority: CertificateAuthority):
    theirs = RedisServer(Path("redis-of-theirs"), relaxed=True)
    await theirs.start()
    try:
        with pytest.raises(NotDurable, match="appendfsync"):
            await seed_server(free_port(), GatewaySettings(redis={"url": theirs.url})).start()
    finally:
        await theirs.stop()


async def test_where_no_redis_answers_on_this_machine_one_is_started(authority: CertificateAuthority):
    gateway = GatewaySettings(redis={"url": f"redis://localhost:{free_port()}"})
    async with seed_server(free_port(), gateway):
        assert Path(".mas/redis/redis.conf").exists()
    elsewhere = GatewaySettings(redis={"url": "redis://192.0.2.1:6379"})
    Path(".mas").rename("before")
    with pytest.raises(ConfigurationError, match="does not answer"):
        await seed_server(free_port(), elsewhere).start()


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:0", "10.0.0.1:4222"])
def test_an_address_that_is_none(address: str):
    with pytest.raises(ConfigurationError, match="listen_addr"):
        MASServerSettings(listen_addr=address).address()


def serial(path: str) -> int:
    return x509.load_pem_x509_certificate(Path(path).read_bytes()).serial_number


async def served_certificate(url: str) -> bytes:
    """The certificate the server shows; NATS upgrades to TLS after its first line."""
    host, port = url.removeprefix("tls://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        await reader.readline()
        context = ssl.create_default_context(cafile="certs/ca.pem")
        await writer.start_tls(context, server_hostname=host)
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(shown).encode()
    finally:
        writer.close()
