"""What each container gets of an installation: just its own files, and what changed of them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from broker_policy.containers.parts import part
from broker_policy.containers.setup import choose_nodes, distribute, set_up
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.material import ControllerKeys, PublicMaterial, SignerKeys, WorkerKeys
from broker_policy.worker import WorkerConfig
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

PARTS = ("controller", "worker", "signer", "redis", "nats", "nats-2", "nats-3", "agent-desk", "agent-router")


class Site:
    """An installation and its parts, made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "site" / ".mas")
        self.parts = folder / "parts"
        for name in PARTS:
            (self.parts / name).mkdir(parents=True)

    def set_up(self) -> dict[str, int]:
        self.layout.root.parent.mkdir(exist_ok=True)
        return set_up(self.layout, self.parts, lambda _: None).handed_out

    def files(self, name: str) -> dict[str, bytes]:
        folder = self.parts / name
        return {
            str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.set_up()
    return made


def secret(path: str) -> bool:
    return path.endswith((".key", ".nk", "redis.conf", "redis/password"))


def test_every_secret_goes_to_its_holders_only(site: Site):
    holders: dict[str, set[str]] = {}
    for name in PARTS:
        for path in filter(secret, site.files(name)):
            holders.setdefault(path, set()).add(name)
    shared = {path: names for path, names in holders.items() if len(names) > 1}
    assert shared == {
        "redis/password": {"redis", "worker", "signer", "controller"},
        "certs/server.key": {"nats", "nats-2", "nats-3"},
    }
    made = {str(path.relative_to(site.layout.root)) for path in site.layout.root.rglob("*") if path.is_file()}
    nobodys = {path for path in made if secret(path)} - holders.keys()
    assert nobodys == {"authority/ca.key", "route-authority/ca.key", "keys/controller/operator.nk"}


def test_each_holder_has_what_it_needs_and_not_what_others_need(site: Site):
    def keys(name: str) -> Path:
        return Layout(site.parts / name).keys

    assert WorkerConfig.embedded(Layout(site.parts / "worker"), "w").endpoint.nodes == 1
    loads = {"worker": WorkerKeys, "signer": SignerKeys, "controller": ControllerKeys}
    for name in loads:
        PublicMaterial.load(keys(name))
        for other, kind in loads.items():
            if name == other:
                kind.load(keys(name))
            else:
                with pytest.raises(ConfigurationError, match="cannot be read"):
                    kind.load(keys(name))


def test_files_are_for_their_owner_only(site: Site):
    for path in [*site.parts.rglob("*"), *site.layout.root.rglob("*")]:
        if path.parent != site.parts:
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_run_changes_nothing(site: Site):
    before = {name: site.files(name) for name in PARTS}
    assert set(site.set_up().values()) == {0}
    assert {name: site.files(name) for name in PARTS} == before


def test_what_changed_is_handed_out_and_what_is_gone_is_taken_away(site: Site):
    key = site.layout.keys / "worker" / "auth-user.nk"
    key.with_suffix(".next.nk").write_bytes(b"next")
    assert distribute(site.layout, site.parts, lambda _: None)["worker"] == 1
    assert site.files("worker")["keys/worker/auth-user.next.nk"] == b"next"
    key.with_suffix(".next.nk").replace(key)
    assert distribute(site.layout, site.parts, lambda _: None)["worker"] == 2
    assert site.files("worker")["keys/worker/auth-user.nk"] == b"next"
    assert "keys/worker/auth-user.next.nk" not in site.files("worker")


def test_an_agents_certificate_that_expires_soon_is_made_anew(site: Site):
    authority = CertificateAuthority.load(site.layout.authority)
    identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.AGENT, "desk")
    short = authority.issue(identity, site.layout.certs, lifetime=timedelta(days=3))
    old = x509.load_pem_x509_certificate(short.cert.read_bytes())
    assert site.set_up()["agent-desk"] == 2
    new = x509.load_pem_x509_certificate(site.files("agent-desk")["certs/default/agent/desk.pem"])
    assert new.not_valid_after_utc - old.not_valid_after_utc > timedelta(days=300)


def test_the_signer_changes_its_key_by_itself_and_the_installation_follows(site: Site):
    """What ``audit.signer.change_key`` does in the signer's folder, at the worst moments for a copy."""
    signers = Layout(site.parts / "signer").keys
    following = Ed25519PrivateKey.generate()
    pem = following.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = following.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (site.layout.keys / "signer" / SignerKeys.NEXT).write_bytes(pem)

    def copy() -> None:
        distribute(site.layout, site.parts, lambda _: None)

    copy()
    (signers / "public" / PublicMaterial.HISTORY).write_bytes(b"history")
    copy()
    (signers / "public" / "checkpoint.pub").write_bytes(public)
    copy()
    (signers / "signer" / SignerKeys.NEXT).replace(signers / "signer" / SignerKeys.FILE)
    copy()
    copy()
    for keys in (signers, site.layout.keys):
        assert (keys / "signer" / SignerKeys.FILE).read_bytes() == pem
        assert not (keys / "signer" / SignerKeys.NEXT).exists()
        assert (keys / "public" / "checkpoint.pub").read_bytes() == public
        assert (keys / "public" / PublicMaterial.HISTORY).read_bytes() == b"history"
    assert site.files("controller")["keys/public/checkpoint.pub"] == public


def test_three_nodes_are_told_of_each_other(tmp_path: Path):
    site = Site(tmp_path)
    site.layout.root.parent.mkdir()
    choose_nodes(site.layout, 3)
    site.set_up()
    assert Broker.read(site.layout).url == "tls://nats:4222,tls://nats-2:4222,tls://nats-3:4222"
    assert Broker.read(site.layout).nodes == 3
    config = site.files("nats-2")["nats-2/nats-server.conf"].decode()
    assert '"tls://nats:6222"' in config
    assert '"tls://nats-3:6222"' in config
    assert '"tls://nats-2:6222"' not in config
    choose_nodes(site.layout, 3)
    with pytest.raises(ConfigurationError, match="made with 3"):
        choose_nodes(site.layout, 1)


def test_one_node_stays_one(site: Site):
    assert b"cluster {" not in site.files("nats")["nats/nats-server.conf"]
    with pytest.raises(ConfigurationError, match="made with 1"):
        choose_nodes(site.layout, 3)


def test_no_other_installation_is_made_over_the_parts_of_one_that_is_away(site: Site):
    before = {name: site.files(name) for name in PARTS}
    site.layout.root.rename(site.layout.root.with_name("away"))
    with pytest.raises(ConfigurationError, match="bring its volume back"):
        site.set_up()
    assert {name: site.files(name) for name in PARTS} == before
    site.layout.root.with_name("away").rename(site.layout.root)
    assert set(site.set_up().values()) == {0}


@pytest.mark.parametrize("name", ["workers", "agent-", "agent-Desk", ".."])
def test_a_part_that_is_not_known_is_refused(name: str):
    with pytest.raises((ConfigurationError, ValueError)):
        part(name)
