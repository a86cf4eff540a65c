"""The development CA, and reading who holds a certificate."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker_policy.identity.pki import CertificateAuthority, IdentityError, fingerprint, identity_from_chain
from mas_nats.wire.identity import Identity, Role, parse_spiffe_id

ALICE = Identity("mas", "default", Role.AGENT, "alice")
OLGA = Identity("mas", "default", Role.OPERATOR, "olga")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_certificate_follows_the_svid_profile(ca, tmp_path):
    certificate = read(ca.issue(ALICE, tmp_path).cert)
    extension = certificate.extensions.get_extension_for_class
    names = list(extension(x509.SubjectAlternativeName).value)
    assert names == [x509.UniformResourceIdentifier("spiffe://mas/ns/default/agent/alice")]
    assert extension(x509.BasicConstraints).value.ca is False
    usage = extension(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    assert list(extension(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate.verify_directly_issued_by(ca.certificate)


def test_files_are_their_owners_only(ca, tmp_path):
    paths = ca.issue(ALICE, tmp_path / "certificates")
    assert paths.cert == tmp_path / "certificates" / "default" / "agent" / "alice.pem"
    for path in (paths.ca, paths.cert, paths.key, ca.folder / "ca.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert paths.key.parent.stat().st_mode & 0o777 == 0o700


def test_issuing_again_replaces_both_files(ca, tmp_path):
    first = ca.issue(ALICE, tmp_path)
    before = (first.cert.read_bytes(), first.key.read_bytes())
    second = ca.issue(ALICE, tmp_path)
    assert second == first
    assert before[0] != second.cert.read_bytes()
    assert before[1] != second.key.read_bytes()
    assert not list(tmp_path.rglob(".*"))


def test_a_server_certificate_names_its_hosts(ca, tmp_path):
    certificate = read(ca.issue_server(["localhost", "nats.example"], ["127.0.0.1", "::1"], tmp_path).cert)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "nats.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_a_ca_is_never_overwritten(tmp_path):
    created = CertificateAuthority.open_or_create(tmp_path / "ca")
    assert CertificateAuthority.open_or_create(tmp_path / "ca").certificate == created.certificate
    with pytest.raises(FileExistsError, match="holds a CA already"):
        CertificateAuthority.create(tmp_path / "ca")


def test_a_missing_ca_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        CertificateAuthority.load(tmp_path)


def test_the_holder_is_read_from_the_leaf(ca, tmp_path):
    paths = ca.issue(ALICE, tmp_path, lifetime=timedelta(hours=1))
    holder = identity_from_chain(paths.cert.read_text())
    assert holder.identity == ALICE
    assert holder.fingerprint == fingerprint(read(paths.cert))
    assert timedelta(minutes=59) < holder.not_after - datetime.now(UTC) <= timedelta(hours=1)


def test_the_fingerprint_is_what_openssl_says(ca, tmp_path):
    paths = ca.issue(ALICE, tmp_path)
    said = subprocess.run(
        ["openssl", "x509", "-in", paths.cert, "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip().partition("=")[2].replace(":", "").lower() == fingerprint(read(paths.cert))


def test_the_short_form_is_the_default_namespace():
    assert parse_spiffe_id("spiffe://mas/agent/alice") == ALICE


@pytest.mark.parametrize(
    "extra",
    [
        x509.UniformResourceIdentifier("spiffe://mas/ns/default/agent/bob"),
        x509.DNSName("alice.example.com"),
        x509.RFC822Name("alice@example.com"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    ],
    ids=["second URI", "DNS", "e-mail", "other"],
)
def test_a_certificate_with_more_names_is_refused(ca, tmp_path, extra):
    paths = ca.issue(ALICE, tmp_path, extra_sans=[extra])
    with pytest.raises(IdentityError, match=r"URI SANs|no SAN but its SPIFFE id"):
        identity_from_chain(paths.cert.read_bytes())


def test_a_persons_certificate_may_carry_an_address(ca, tmp_path):
    paths = ca.issue(OLGA, tmp_path, extra_sans=[x509.RFC822Name("olga@example.com")])
    assert identity_from_chain(paths.cert.read_bytes()).identity == OLGA


@pytest.mark.parametrize(
    "identity",
    [
        Identity("mas", "default", Role.AGENT, "*"),
        Identity("mas", "a.b", Role.AGENT, "alice"),
        Identity("mas", "default", Role.AGENT, "a b"),
        Identity("mas", "default", Role.AGENT, ">"),
        Identity("mas", "default", Role.AGENT, "x" * 64),
        Identity("mas", "default", Role.AGENT, "Alice"),
    ],
    ids=lambda identity: identity.uri[:50],
)
def test_what_could_become_part_of_a_subject_is_refused(ca, tmp_path, identity):
    extra = [x509.UniformResourceIdentifier(identity.uri)]
    paths = ca._write(
        tmp_path / "odd", tmp_path, subject="odd", sans=extra,
        usages=[ExtendedKeyUsageOID.CLIENT_AUTH], lifetime=timedelta(hours=1),
    )  # fmt: skip
    with pytest.raises(IdentityError, match="not a SPIFFE ID"):
        identity_from_chain(paths.cert.read_bytes())


def test_a_server_or_ca_certificate_identifies_nobody(ca, tmp_path):
    server = ca.issue_server(["localhost"], [], tmp_path)
    with pytest.raises(IdentityError, match="0 URI SANs"):
        identity_from_chain(server.cert.read_bytes())
    with pytest.raises(IdentityError, match="CA certificate"):
        identity_from_chain(server.ca.read_bytes())
    with pytest.raises(IdentityError, match="cannot be read"):
        identity_from_chain(b"nothing")
