from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from broker_policy.identity.pki import CertificateAuthority
from mas_nats.config import DEFAULT_URL, TlsClientConfig, resolve
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import Identity, Role


@pytest.fixture
def tls(ca: CertificateAuthority, tmp_path: Path) -> TlsClientConfig:
    paths = ca.issue(Identity("mas", "default", Role.AGENT, "desk"), tmp_path / "issued")
    return TlsClientConfig(paths.ca, paths.cert, paths.key)


def installation(folder: Path, tls: TlsClientConfig, url: str = "tls://127.0.0.1:5999") -> Path:
    agents = folder / ".mas" / "certs" / "default" / "agent"
    agents.mkdir(parents=True)
    ca, cert, key = tls.paths
    (agents.parent.parent / "ca.pem").write_bytes(ca.read_bytes())
    (agents / "desk.pem").write_bytes(cert.read_bytes())
    (agents / "desk.key").write_bytes(key.read_bytes())
    (folder / ".mas" / "endpoint.json").write_bytes(orjson.dumps({"url": url, "ca": "certs/ca.pem"}))
    return folder


def test_argument_beats_environment_beats_file_beats_default(tls: TlsClientConfig, tmp_path: Path):
    home = installation(tmp_path / "home", tls)
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    env = {"MAS_SERVER_ADDR": "broker:7000"}
    assert resolve("desk", "h:1", tls, environment=env, folder=home).url == "tls://h:1"
    assert resolve("desk", None, tls, environment=env, folder=home).url == "tls://broker:7000"
    assert resolve("desk", None, tls, environment={}, folder=home).url == "tls://127.0.0.1:5999"
    assert resolve("desk", None, tls, environment={}, folder=nowhere).url == DEFAULT_URL


def test_installation_is_found_from_a_folder_below(tls: TlsClientConfig, tmp_path: Path):
    below = installation(tmp_path / "home", tls) / "src" / "deep"
    below.mkdir(parents=True)
    found = resolve("desk", environment={}, folder=below)
    ca, cert, key = found.tls.paths
    assert (ca.name, cert.name, key.name) == ("ca.pem", "desk.pem", "desk.key")
    found.context()


def test_certificates_from_the_environment(tls: TlsClientConfig, tmp_path: Path):
    ca, cert, key = map(str, tls.paths)
    env = {"MAS_CA": ca, "MAS_CERT": cert, "MAS_KEY": key}
    assert resolve("desk", environment=env, folder=tmp_path).tls == TlsClientConfig(ca, cert, key)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:4333", "tls://127.0.0.1:4333"),
        ("broker", "tls://broker:4222"),
        ("nats://broker:4222", "tls://broker:4222"),
        ("tls://[::1]:4222", "tls://[::1]:4222"),
        ("n1, nats://n2:4333,[::1]", "tls://n1:4222,tls://n2:4333,tls://[::1]:4222"),
    ],
)
def test_forms_of_an_address(address: str, url: str, tls: TlsClientConfig):
    assert resolve("desk", address, tls).url == url


@pytest.mark.parametrize("address", ["http://broker:1", "broker:port", "tls://", "n1,,n2", "n1,"])
def test_not_an_address(address: str, tls: TlsClientConfig):
    with pytest.raises(ConfigurationError, match="neither host:port"):
        resolve("desk", address, tls)


def test_nothing_at_all_says_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"mas up.*mas certs agent desk"):
        resolve("desk", environment={}, folder=tmp_path)


def test_missing_file_names_it_and_the_command(tls: TlsClientConfig, tmp_path: Path):
    gone = TlsClientConfig(tls.root_ca_path, "gone.pem", tls.client_key_path)
    with pytest.raises(ConfigurationError, match=r"gone\.pem does not exist.*mas certs agent desk"):
        resolve("desk", tls=gone)


def test_somebody_elses_certificate(tls: TlsClientConfig):
    with pytest.raises(ConfigurationError, match="belongs to agent 'desk', not to 'router'"):
        resolve("router", tls=tls)


def test_a_file_that_is_no_certificate(tls: TlsClientConfig, tmp_path: Path):
    (tmp_path / "x.pem").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="is not a certificate"):
        resolve("desk", tls=TlsClientConfig(tls.root_ca_path, tmp_path / "x.pem", tls.client_key_path))


def test_key_of_another_certificate(tls: TlsClientConfig, ca: CertificateAuthority, tmp_path: Path):
    other = ca.issue(Identity("mas", "default", Role.AGENT, "other"), tmp_path / "other")
    found = resolve("desk", tls=TlsClientConfig(tls.root_ca_path, tls.client_cert_path, other.key))
    with pytest.raises(ConfigurationError, match="cannot be used"):
        found.context()


def test_relative_paths_start_at_the_current_folder(
    tls: TlsClientConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ca, cert, key = (Path(os.path.relpath(path, tmp_path)) for path in tls.paths)
    resolve("desk", tls=TlsClientConfig(ca, cert, key)).context()


def test_damaged_endpoint_file(tmp_path: Path):
    (tmp_path / ".mas").mkdir()
    (tmp_path / ".mas" / "endpoint.json").write_text("{")
    with pytest.raises(ConfigurationError, match="mas up"):
        resolve("desk", environment={}, folder=tmp_path)
