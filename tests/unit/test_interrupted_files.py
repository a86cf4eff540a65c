"""Keys and certificates whose maker is killed at any step: nothing half made is used."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker_policy.embedded.certify import certify, torn
from broker_policy.embedded.layout import POLICY_HOLDERS, Layout
from broker_policy.identity import drafts, pki
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.identity.private_files import sync_folder, sync_tree, write_private
from broker_policy.tenants.material import create_material

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from broker_policy.identity import drafts\n"
    "with drafts.filled(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


class Killed(BaseException):
    """Nothing of ours catches it."""


def kill_at(monkeypatch, at):
    """Have the ``at``-th file that ``pki`` writes, from 1, never be written."""
    written = 0

    def write(path, content):
        nonlocal written
        written += 1
        if written == at:
            raise Killed
        return write_private(path, content)

    monkeypatch.setattr(pki, "write_private", write)


def belong_together(cert: Path) -> bool:
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    key = load_pem_private_key(cert.with_suffix(".key").read_bytes(), None)
    return key.public_key() == certificate.public_key()


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path / ".mas")
    layout.create()
    return layout


@pytest.mark.parametrize("at", [1, 2])
def test_a_ca_that_was_not_made_to_the_end_is_made_anew(tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        kill_at(patch, at)
        with pytest.raises(Killed):
            CertificateAuthority.open_or_create(tmp_path / "authority")
    made = CertificateAuthority.open_or_create(tmp_path / "authority")
    assert CertificateAuthority.load(tmp_path / "authority").certificate == made.certificate
    assert belong_together(tmp_path / "authority" / "ca.pem")


@pytest.mark.parametrize("name", ["server", *POLICY_HOLDERS])
def test_a_certificate_without_its_key_is_made_anew(layout, monkeypatch, name):
    certify(layout)
    certs = [layout.server_cert, *(layout.policy_certificate(each).cert for each in POLICY_HOLDERS)]
    half = next(cert for cert in certs if cert.stem == name)
    before = {cert: cert.read_bytes() for cert in certs}
    authority = CertificateAuthority.load(layout.authority)
    identity = pki.parse_spiffe_id(f"spiffe://mas/ns/default/policy/{name}")
    with monkeypatch.context() as patch:
        kill_at(patch, 2)  # the key was replaced, the certificate not
        with pytest.raises(Killed):
            authority.issue(identity, layout.certs, flat=name == "server")
    assert not belong_together(half)
    certify(layout)
    assert all(map(belong_together, certs))
    assert {cert for cert in certs if cert.read_bytes() != before[cert]} == {half}


def test_what_is_written_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(path, target):
        steps.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_private(tmp_path / "a.key", b"secret")
    assert steps == ["file", "name", "folder"]


def test_a_whole_folder_is_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"c")
    (tmp_path / "d").write_bytes(b"d")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    sync_tree(tmp_path)
    there = [tmp_path, *(path for path in tmp_path.rglob("*") if not path.is_symlink())]
    assert synced == {path.stat().st_ino for path in there}


def test_what_a_killed_maker_left_goes_and_what_is_being_made_stays(tmp_path):
    draft, other = tmp_path / ".keys.0123abcd", tmp_path / ".keys.other"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, draft], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"held\n"
        drafts.remove_abandoned(tmp_path, ".keys.")
        assert draft.is_dir()
        maker.kill()
    assert draft.is_dir()
    drafts.remove_abandoned(tmp_path, ".keys.")
    assert not draft.exists()
    assert other.is_dir()


def test_keys_that_nobody_came_to_use_do_not_stay(tmp_path):
    left = tmp_path / ".keys.0123abcd" / "controller"
    left.mkdir(parents=True)
    (left / "operator.nk").write_bytes(b"SO")
    create_material(tmp_path / "keys")
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_key_that_may_not_be_read_is_not_said_to_be_another_ones(layout, monkeypatch):
    certify(layout)
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.suffix == ".key":
            raise PermissionError(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert not torn(layout.server_cert)


@pytest.mark.parametrize(("number", "left_to_it"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_a_folder_is_not_asked_to(tmp_path, monkeypatch, number, left_to_it):
    def fsync(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if left_to_it else pytest.raises(OSError, match="no"):
        sync_folder(tmp_path)
