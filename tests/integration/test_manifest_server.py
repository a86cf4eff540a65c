"""``mas up`` with a manifest that says where to listen, with which certificate, and on which Redis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.ports import LOOPBACK, free_port
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.embedded.server_part import planned
from broker_policy.identity.pki import CertificateAuthority
from mas_nats import Agent, TlsClientConfig
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.system import mas

TLS = {"tls_ca_path": "ca.pem", "tls_server_cert_path": "server.pem", "tls_server_key_path": "server.key"}


def manifest(folder: Path, **said: str) -> Path:
    """A manifest, beside a folder certs/ with what it names."""
    path = folder / "mas.yaml"
    path.write_text(
        "".join(f"{name}: {value}\n" for name, value in said.items()) + "agents: [{agent_id: a}]\n"
    )
    return path


def certified() -> dict[str, str]:
    return {name: f"certs/{file}" for name, file in TLS.items()}


async def test_what_the_manifest_says_of_the_server_holds(tmp_path: Path):
    authority = CertificateAuthority.create(tmp_path / "theirs")
    authority.issue_server([], [LOOPBACK], tmp_path / "certs")
    theirs = RedisServer(tmp_path / "redis-of-theirs")
    await theirs.start()
    port = free_port()
    said = {
        **certified(),
        "server_listen_addr": f"localhost:{port}",
        "gateway": f"{{redis: {{url: '{theirs.url}'}}}}",
    }
    folder = tmp_path / ".mas"
    up = ("up", "--detach", "--folder", str(folder), "--manifest", str(manifest(tmp_path, **said)))
    try:
        shown = mas(*up)
        assert "has no effect" not in shown.stdout + shown.stderr
        broker = Broker.read(Layout(folder))
        assert broker.url.endswith(f":{port}")
        assert f":{theirs.port}/" in broker.redis
        identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.AGENT, "a")
        paths = authority.issue(identity, tmp_path / "certs", flat=True)
        async with Agent("a", server_addr=broker.url, tls=TlsClientConfig(paths.ca, paths.cert, paths.key)):
            pass
        mas("down", "--folder", str(folder))
        named = str(free_port())
        mas(*up, "--port", named)
        assert Broker.read(Layout(folder)).url.endswith(f":{named}"), "--port beats the manifest"
    finally:
        mas("down", "--folder", str(folder), check=False)
        await theirs.stop()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"server_listen_addr": "10.0.0.1:4222"}, "server_listen_addr '10.0.0.1:4222': listen on"),
        ({"server_listen_addr": "localhost"}, "is not host:port"),
        ({"tls_ca_path": "ca.pem"}, "tls_server_cert_path is missing: name all of"),
        (certified(), "there is no {folder}/certs/server.pem. Put it there, or leave out"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    tmp_path: Path, said: dict[str, str], words: str
):
    path = manifest(tmp_path, **said)
    done = mas("up", "--detach", "--folder", str(tmp_path / ".mas"), "--manifest", str(path), check=False)
    assert (done.returncode, (tmp_path / ".mas").exists()) == (1, False)
    assert words.format(folder=tmp_path) in done.stderr
    with pytest.raises(ConfigurationError, match=re.escape(words.format(folder=tmp_path))):
        planned(Plan(manifest=path))


def test_the_environment_names_the_redis_without_a_manifest(monkeypatch: pytest.MonkeyPatch):
    assert planned(Plan()).redis == ""
    monkeypatch.setenv("MAS_GATEWAY__REDIS__URL", "redis://example.org:6379")
    assert planned(Plan()).redis == "redis://example.org:6379"
