"""An operator's command that is killed, and what the next one makes of what it left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker_policy.identity.pki import CertificateAuthority
from broker_policy.keys.rotate import rotate
from broker_policy.keys.site import Site
from tests.system import REPOSITORY, System, mas


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    running = System.up(tmp_path_factory.mktemp("interrupted") / ".mas", "--workers", "1")
    yield running
    running.down()


def belong_together(cert: Path, key: Path) -> bool:
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    private = load_pem_private_key(key.read_bytes(), None)
    return private.public_key() == certificate.public_key()


@pytest.mark.parametrize("made", [(), ("ca.pem",), ("ca.key",)])
async def test_a_ca_whose_making_was_cut_off_takes_nobodys_place(system, made):
    authority = system.layout.authority
    before = (authority / "ca.pem").read_bytes()
    following = CertificateAuthority.create(authority / "next").folder
    for name in {"ca.pem", "ca.key"} - {*made}:
        (following / name).unlink()
    site = Site(system.layout, lambda _: None)
    await rotate(site, "ca")
    assert (authority / "ca.pem").read_bytes() != before
    await rotate(site, "ca", now=True)
    assert belong_together(authority / "ca.pem", authority / "ca.key")
    async with site.control() as (_, store):
        assert await store.beats()


async def test_a_ca_goes_on_where_the_controllers_certificate_was_half_replaced(system):
    """Killed while the new CA issued: the key is the new one, the certificate the old one."""
    site = Site(system.layout, lambda _: None)
    await rotate(site, "ca")
    (system.layout.authority / "next").mkdir(mode=0o700)  # as before its last step
    paths = system.layout.policy_certificate("controller")
    old = paths.cert.read_bytes()
    await rotate(site, "tls-controller")
    paths.cert.write_bytes(old)
    assert not belong_together(paths.cert, paths.key)
    await rotate(site, "ca")
    await rotate(site, "ca", now=True)
    assert belong_together(paths.cert, paths.key)


def test_the_next_backup_removes_what_a_killed_one_left(system, tmp_path):
    left = system.layout.root / ".backup-0123abcd" / "keys"
    left.mkdir(parents=True)
    (left / "operator.nk").write_bytes(b"SO")
    (tmp_path / "passphrase").write_text("a passphrase of some length\n")
    secret = ("--passphrase-file", str(tmp_path / "passphrase"))
    file, folder = tmp_path / "a.mas", tmp_path / "restored"
    mas("backup", str(file), "--folder", str(system.layout.root), *secret)
    assert not list(system.layout.root.glob(".backup-*"))

    draft = tmp_path / ".restored.0123abcd" / "keys"
    draft.mkdir(parents=True)
    (draft / "operator.nk").write_bytes(b"SO")
    mas("restore", str(file), "--folder", str(folder), *secret)
    assert {path.name for path in tmp_path.iterdir()} == {"passphrase", "a.mas", "restored"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_up_that_is_interrupted_before_it_is_ready_does_not_say_all_went_well(tmp_path, number):
    folder = tmp_path / ".mas"
    command = [sys.executable, "-m", "broker_policy.cli", "up", "--no-manifest", "--folder", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # of the first server: it is on its way
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr
    assert not (folder / "endpoint.json").exists()
