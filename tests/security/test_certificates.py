"""Who gets in: exactly the certificates that policy knows, for exactly as long as they are valid."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from installation import Installation
from waiting import until

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import KeyPair, Kind
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.connect import Credentials, _connect
from broker_policy.tenants.endpoint import Endpoint
from mas_nats.errors import ConfigurationError, IdentityRefused
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import Identity, Role

URI = x509.UniformResourceIdentifier


async def test_a_known_agent_gets_in_and_is_reported(installation: Installation):
    peer = await installation.connect(installation.identity("mallory"))
    assert peer.client.is_connected
    (attempt,) = installation.attempts
    assert (attempt.uri, attempt.reason) == ("spiffe://mas/ns/alpha/agent/mallory", "")
    assert attempt.holder is not None
    assert len(attempt.holder.fingerprint) == 64


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity("mas", "alpha", Role.AGENT, "nobody"), "knows no such identity"),
        (Identity("mas", "gamma", Role.AGENT, "mallory"), "knows no such identity"),
        (Identity("mas", "alpha", Role.INSPECTOR, "mallory"), "knows no such identity"),
        (Identity("mas", "alpha", Role.OPERATOR, "mallory"), "knows no such identity"),
        (Identity("mas", "alpha", Role.POLICY, "mallory"), "knows no such identity"),
        (Identity("mas", "alpha", Role.AGENT, "watcher"), "knows no such identity"),
        (Identity("elsewhere", "alpha", Role.AGENT, "mallory"), "trust domain"),
    ],
    ids=lambda value: value.uri if isinstance(value, Identity) else "",
)
async def test_an_unknown_identity_is_refused_with_its_name(installation, caplog, identity, reason):
    with pytest.raises(IdentityRefused, match="not in the policy"):
        await installation.connect(identity)
    (attempt,) = installation.attempts
    assert attempt.uri == identity.uri
    assert reason in attempt.reason
    assert identity.uri in caplog.text


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([URI("spiffe://mas/ns/alpha/agent/victim")], "2 URI SANs"),
        ([URI("https://example.com")], "2 URI SANs"),
        ([x509.DNSName("mallory.example.com")], "no SAN but its SPIFFE id"),
        ([x509.RFC822Name("mallory@example.com")], "no SAN but its SPIFFE id"),
    ],
    ids=["second SPIFFE id", "other URI", "DNS", "e-mail"],
)
async def test_a_certificate_that_says_more_than_one_name_is_refused(installation, extra, reason):
    identity = installation.identity("mallory")
    paths = installation.certificate(identity, extra_sans=extra)
    with pytest.raises(IdentityRefused):
        await installation.connect(identity, paths)
    (attempt,) = installation.attempts
    assert attempt.holder is None
    assert reason in attempt.reason


async def test_an_expired_certificate_does_not_pass_the_handshake(installation):
    identity = installation.identity("mallory")
    paths = installation.certificate(identity, lifetime=timedelta(seconds=-1))
    with pytest.raises(IdentityRefused, match="expired"):
        await installation.connect(identity, paths)
    assert installation.attempts == []


async def test_a_certificate_of_a_foreign_ca_does_not_pass_the_handshake(installation, tmp_path: Path):
    identity = installation.identity("mallory")
    foreign = CertificateAuthority.create(tmp_path / "foreign-ca")
    with pytest.raises(IdentityRefused, match="CA the server does not know"):
        await installation.connect(identity, foreign.issue(identity, tmp_path / "foreign"))
    assert installation.attempts == []


async def test_a_server_of_a_foreign_ca_is_not_trusted(installation, tmp_path: Path):
    paths = installation.certificate(installation.identity("mallory"))
    foreign = CertificateAuthority.create(tmp_path / "foreign-ca")
    endpoint = Endpoint(installation.server.url, foreign.folder / "ca.pem", paths.cert, paths.key)
    with pytest.raises(ConfigurationError, match="not trusted"):
        await _connect_plainly(endpoint.url, endpoint.ssl_context())


async def test_without_a_certificate_there_is_no_connection(installation):
    context = ssl.create_default_context(cafile=str(installation.certificates / "ca.pem"))
    with pytest.raises(IdentityRefused):
        await _connect_plainly(installation.server.url, context)
    assert installation.attempts == []


@pytest.mark.parametrize("account", ["alpha", "CONTROL", "SYS"])
async def test_a_jwt_of_ones_own_making_opens_nothing(installation, account):
    paths = installation.certificate(installation.identity("mallory"))
    endpoint = Endpoint(installation.server.url, paths.ca, paths.cert, paths.key)
    public = (
        installation.documents[account].account
        if account == "alpha"
        else installation.material.public.accounts[account]
    )
    user, signer = KeyPair.create(Kind.USER), KeyPair.create(Kind.ACCOUNT)
    claims = jwt.user_claims(user.public, "mallory", jwt.EVERYTHING, issuer_account=public)
    with pytest.raises(IdentityRefused):
        await _connect(endpoint, lambda: Credentials(user, signer, claims), name="mallory", patience=3)


async def test_what_the_client_says_about_itself_is_ignored(installation):
    paths = installation.certificate(installation.identity("mallory"))
    client = ResilientClient()
    await client.connect_within(
        3.0,
        servers=[installation.server.url],
        tls=Endpoint(installation.server.url, paths.ca, paths.cert, paths.key).ssl_context(),
        tls_hostname="localhost",
        error_cb=_ignore,
        name="spiffe://mas/ns/alpha/agent/victim",
        user="victim",
        password="x",
    )
    try:
        assert installation.attempts[-1].uri == "spiffe://mas/ns/alpha/agent/mallory"
    finally:
        await client.close()


async def test_a_connection_ends_with_its_certificate(installation):
    identity = installation.identity("mallory")
    peer = await installation.connect(
        identity, installation.certificate(identity, lifetime=timedelta(seconds=2))
    )
    await until(lambda: any("certificate" in str(error).lower() for error in peer.errors), within=6)
    assert "authentication expired" in str(peer.errors[0]).lower()
    assert not peer.client.is_connected


async def test_kicked_it_is_back_at_once_and_subscriptions_survive(installation):
    peer = await installation.connect(installation.identity("mallory"))
    await peer.listen("mas.reply.mallory.>")
    assert await installation.controller.kick("spiffe://mas/ns/alpha/agent/mallory") == 1
    await until(lambda: len(installation.attempts) == 2 and peer.client.is_connected)
    await peer.client.flush()
    await installation.admins["alpha"].publish(subjects.answer("mallory", "i1", "c7", 0), b"reply")
    await until(lambda: bool(peer.received))
    assert await installation.controller.kick("spiffe://mas/ns/alpha/agent/victim") == 0


async def test_out_of_the_policy_and_kicked_it_stays_out(installation):
    peer = await installation.connect(installation.identity("mallory"))
    policy = installation.documents["alpha"]
    agents = {name: agent for name, agent in policy.agents.items() if name != "mallory"}
    installation.documents["alpha"] = policy.model_copy(update={"agents": agents})
    assert await installation.controller.kick_account(policy.agents["mallory"].account) == 1
    await until(lambda: any(attempt.reason for attempt in installation.attempts))
    assert not peer.client.is_connected
    installation.documents["alpha"] = policy
    await until(lambda: peer.client.is_connected)


async def test_a_callout_that_cannot_judge_refuses_and_goes_on(installation, caplog):
    def broken(identity, grant):
        raise RuntimeError("no policy here")

    installation.change = broken
    with pytest.raises(IdentityRefused):
        await installation.connect(installation.identity("mallory"))
    assert "could not judge" in installation.attempts[-1].reason
    assert "could not be judged" in caplog.text
    installation.change = lambda _, grant: grant
    assert (await installation.connect(installation.identity("mallory"))).client.is_connected


async def test_an_operator_rules_its_own_namespace_only(installation):
    olga = await installation.connect(installation.identity("olga", "alpha", Role.OPERATOR))
    assert (await olga.client.jetstream().stream_info("INBOX")).state.messages == 9
    await olga.client.jetstream().purge_stream("INBOX")
    beta = await installation.admins["beta"].jetstream().stream_info("INBOX")
    assert beta.state.messages == 9


async def test_a_namesake_of_another_namespace_is_somebody_else(installation):
    mallory = await installation.connect(installation.identity("mallory", "beta"))
    heard: list[bytes] = []

    async def hear(message):
        heard.append(message.data)

    await installation.admins["alpha"].subscribe(subjects.CALLS, cb=hear)
    await installation.admins["alpha"].flush()
    answer = await mallory.client.request(subjects.call("mallory", "send"), b"to beta", timeout=2)
    await installation.admins["alpha"].flush()
    assert (answer.data, heard) == (b"to beta", [])


async def _connect_plainly(url: str, context: ssl.SSLContext) -> None:
    client = ResilientClient()
    try:
        await client.connect_within(
            3.0, servers=[url], tls=context, tls_hostname="localhost", error_cb=_ignore
        )
    finally:
        await client.close()


async def _ignore(error: Exception) -> None:
    pass
