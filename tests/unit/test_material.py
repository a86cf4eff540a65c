"""The keys of an installation: made once, for one holder each, never overwritten."""

from __future__ import annotations

import hmac

import pytest

from broker_policy.identity import jwt
from broker_policy.identity.nkeys import Kind
from broker_policy.tenants.material import (
    ControllerKeys,
    Material,
    PublicMaterial,
    SignerKeys,
    WorkerKeys,
    create_material,
)
from broker_policy.tenants.sealing_ring import KEPT_MS, OPENS_MS, Retired, SealingKey, SealingRing
from mas_nats.errors import ConfigurationError


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material") / "keys"
    create_material(folder)
    return folder


def test_each_holder_has_its_folder_and_each_file_its_owner(keys):
    files = {str(path.relative_to(keys)) for path in keys.rglob("*") if path.is_file()}
    assert files == {
        "controller/operator.nk",
        "controller/operator-signing.nk",
        "controller/accounts.key",
        "controller/sys-signing.nk",
        "worker/auth-signing.nk",
        "worker/auth-user.nk",
        "worker/tenant-signing.nk",
        "worker/control-worker.nk",
        "worker/sys-observer.nk",
        "worker/sealing.key",
        "worker/token-signing.key",
        "signer/checkpoint.key",
        "signer/control-signer.nk",
        "public/operator.jwt",
        "public/system.jwt",
        "public/auth.jwt",
        "public/control.jwt",
        "public/workers.jwt",
        "public/signer.jwt",
        "public/sentinel.jwt",
        "public/checkpoint.pub",
        "public/accounts.json",
    }
    for path in keys.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_they_are_made_once(keys):
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    again = create_material(keys)
    assert {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()} == before
    assert again.worker.sealing == WorkerKeys.load(keys).sealing


def test_an_installation_older_than_tokens_gets_their_key(tmp_path):
    keys = tmp_path / "keys"
    create_material(keys)
    (keys / "worker" / WorkerKeys.TOKENS).unlink()
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    assert WorkerKeys.load(keys).tokens is None
    made = create_material(keys).worker.tokens
    assert made == WorkerKeys.load(keys).tokens is not None
    assert made == create_material(keys).worker.tokens
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (keys / "worker" / WorkerKeys.TOKENS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("controller/operator-signing.nk", ControllerKeys.load),
        ("controller/accounts.key", ControllerKeys.load),
        ("worker/tenant-signing.nk", WorkerKeys.load),
        ("worker/sealing.key", WorkerKeys.load),
        ("signer/checkpoint.key", SignerKeys.load),
        ("public/accounts.json", PublicMaterial.load),
        ("public/checkpoint.pub", PublicMaterial.load),
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_what_is_missing_or_damaged_is_named(tmp_path, file, load, content):
    create_material(tmp_path / "keys")
    path = tmp_path / "keys" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=path.parent.name):
        load(tmp_path / "keys")


def test_an_incomplete_folder_is_not_completed(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "stray").touch()
    with pytest.raises(ConfigurationError):
        create_material(tmp_path / "keys")
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["stray"]


def test_a_key_of_the_wrong_kind_is_refused(tmp_path):
    create_material(tmp_path / "keys")
    folder = tmp_path / "keys" / "worker"
    (folder / "tenant-signing.nk").write_bytes((folder / "auth-user.nk").read_bytes())
    with pytest.raises(ConfigurationError, match="kind USER, not ACCOUNT"):
        WorkerKeys.load(tmp_path / "keys")


def test_a_holder_needs_its_own_folder_only(keys, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "worker").symlink_to(keys / "worker")
    assert WorkerKeys.load(tmp_path / "keys").tenant_signing.kind is Kind.ACCOUNT
    with pytest.raises(ConfigurationError):
        Material.load(tmp_path / "keys")


def test_account_keys_are_derived_and_all_different(keys):
    controller = ControllerKeys.load(keys)
    names = ("SYS", "AUTH", "CONTROL", "default", "default.agent.a", "default.inspector.a", "default.agent.b")
    publics = {controller.account(name).public for name in names}
    assert len(publics) == len(names)
    assert controller.account("default").public == ControllerKeys.load(keys).account("default").public
    assert PublicMaterial.load(keys).accounts["CONTROL"] == controller.account("CONTROL").public


def test_subkeys_differ_by_purpose_and_worker():
    key = SealingKey("k1", bytes(32))
    derived = {
        key.derive("record-mac"),
        key.salt_key,
        key.instance_key,
        key.reply_key("w1"),
        key.reply_key("w2"),
    }
    assert len(derived) == 5
    assert "secret" not in repr(key)


def test_subkeys_are_hkdf_sha256():
    """RFC 5869, extract with an empty salt and expand to one block, written out."""
    secret = bytes(range(32))
    extracted = hmac.digest(bytes(32), secret, "sha256")
    assert SealingKey("k1", secret).derive("salt") == hmac.digest(extracted, b"salt\x01", "sha256")


def test_secrets_are_in_no_repr(keys):
    material = Material.load(keys)
    text = repr(material)
    for path in (keys / "worker", keys / "controller", keys / "signer"):
        for file in path.iterdir():
            assert file.read_text().strip() not in text
    assert material.controller.accounts_secret.hex() not in text
    assert repr(material.controller.accounts_secret) not in text
    assert repr(material.worker.sealing.current.secret) not in text


def test_the_server_configuration_names_every_fixed_account(keys):
    public = PublicMaterial.load(keys)
    config = public.server_config("some/where")
    for name, account in public.accounts.items():
        assert f"  {account}: {public.account_jwts[name]}\n" in config
    assert 'dir: "some/where"' in config
    assert f"system_account: {public.accounts['SYS']}\n" in config


def test_only_control_has_jetstream(keys):
    public = PublicMaterial.load(keys)
    streams = {
        name: jwt.decode(token, issued_by=Kind.OPERATOR)["nats"]["limits"]["streams"]
        for name, token in public.account_jwts.items()
    }
    assert streams == {"SYS": 0, "AUTH": 0, "CONTROL": -1, "WORKERS": 0, "SIGNER": 0}


def test_a_ring_turns_and_forgets(tmp_path):
    path = tmp_path / "sealing.key"
    first, second, third = (SealingKey.create() for _ in range(3))
    SealingRing(first).write(path)
    staged = SealingRing.read(path).staged(second)
    assert list(staged) == [first, second]
    staged.turned(1_000).write(path)
    turned = SealingRing.read(path)
    assert list(turned) == [second, first]
    assert turned.opening(1_000 + OPENS_MS) == (second, first)
    assert turned.opening(1_001 + OPENS_MS) == (second,), (
        "after the longest deadline nothing is opened with it"
    )
    again = turned.staged(third).turned(2_000)
    assert list(again) == [third, second, first], "not only the last one is kept"
    assert again.pruned(1_001 + KEPT_MS).retired == (Retired(second, 2_000),)
    with pytest.raises(ValueError, match="no next"):
        turned.turned(3_000)


def test_records_written_before_and_during_a_rotation_verify():
    old, new = SealingRing(SealingKey.create()), SealingKey.create()
    mac = old.record_key.mac(b"record")
    rotated = old.staged(new).turned(1)
    assert rotated.record_key.verify(b"record", mac)
    assert rotated.record_key.mac(b"record") != mac
    assert not rotated.record_key.verify(b"Record", mac)
    assert old.staged(new).record_key.verify(b"record", rotated.record_key.mac(b"record")), "a worker ahead"
    assert not SealingRing(new).record_key.verify(b"record", mac), "forgotten"
    held = old.record_key
    held.become(rotated.record_key)
    assert held.mac(b"record") == rotated.record_key.mac(b"record")
