"""The development CA, and who the holder of a verified certificate is.

Certificates follow the SPIFFE X.509-SVID profile: exactly one URI SAN, no CA leaf, digital signature
only. In production any SPIFFE issuer can take the CA's place; what reads certificates stays the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.private_files import private_folder, write_private
from mas_nats.wire.identity import Identity, Role, parse_spiffe_id

_CLOCK_TOLERANCE = timedelta(minutes=5)
_CA_LIFETIME = timedelta(days=3650)
_SERVER_LIFETIME = timedelta(days=365)
_CONTAINED = frozenset({Role.AGENT, Role.INSPECTOR})


class IdentityError(ValueError):
    """A certificate that says nothing, or too much, about who holds it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a certificate."""

    identity: Identity
    fingerprint: str  # SHA-256 of the certificate, hexadecimal
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A CA in a folder (``ca.pem``, ``ca.key``), for development and tests."""

    folder: Path
    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, folder: Path) -> CertificateAuthority:
        """Make a new CA.

        Raises:
            FileExistsError: ``folder`` holds one already; it is never overwritten.

        """
        if (folder / "ca.key").exists():
            raise FileExistsError(f"{folder} holds a CA already: use it, or choose another folder")
        private_folder(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mas development CA")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_TOLERANCE)
            .not_valid_after(now + _CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(folder / "ca.pem", _certificate_pem(certificate))
        write_private(folder / "ca.key", _key_pem(key))  # last: who finds it takes the CA for whole
        return cls(folder, certificate, key)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Read the CA of ``folder``.

        Raises:
            FileNotFoundError: there is none.

        """
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / 'ca.key'} is not an elliptic-curve key")
        return cls(folder, certificate, key)

    @classmethod
    def open_or_create(cls, folder: Path) -> CertificateAuthority:
        """The CA of ``folder``, made when there is none."""
        return cls.load(folder) if (folder / "ca.key").exists() else cls.create(folder)

    def issue(
        self,
        identity: Identity,
        folder: Path,
        *,
        lifetime: timedelta = timedelta(hours=24),
        extra_sans: Sequence[x509.GeneralName] = (),
        flat: bool = False,
    ) -> CertificatePaths:
        """Issue a client certificate for ``identity``.

        It goes to ``folder/<namespace>/<role>/<name>.pem`` and ``.key``, or with ``flat`` into ``folder``
        itself, replacing an older one; the CA certificate goes to ``folder/ca.pem``. ``extra_sans`` exist
        to test that they are refused.
        """
        sans = [x509.UniformResourceIdentifier(identity.uri), *extra_sans]
        place = folder if flat else folder / identity.namespace / identity.role
        return self._write(
            place / identity.name,
            folder,
            subject=identity.name,
            sans=sans,
            usages=[ExtendedKeyUsageOID.CLIENT_AUTH],
            lifetime=lifetime,
        )

    def issue_server(
        self, dns_names: Iterable[str], ips: Iterable[str], folder: Path, *, name: str = "server"
    ) -> CertificatePaths:
        """Issue a certificate for a NATS server reachable under these names and addresses."""
        names = list(dns_names)
        return self._write(
            folder / name,
            folder,
            subject=names[0] if names else name,
            sans=_places(names, ips),
            usages=[ExtendedKeyUsageOID.SERVER_AUTH],
            lifetime=_SERVER_LIFETIME,
        )

    def issue_peer(
        self, dns_names: Iterable[str], ips: Iterable[str], folder: Path, *, name: str
    ) -> CertificatePaths:
        """Issue a certificate for servers that connect to each other, good for both ends."""
        return self._write(
            folder / name,
            folder,
            subject=name,
            sans=_places(dns_names, ips),
            usages=[ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            lifetime=_SERVER_LIFETIME,
        )

    def _write(
        self,
        stem: Path,
        folder: Path,
        *,
        subject: str,
        sans: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        lifetime: timedelta,
    ) -> CertificatePaths:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mas"),
                        x509.NameAttribute(NameOID.COMMON_NAME, subject),
                    ]
                )
            )
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, now + lifetime) - _CLOCK_TOLERANCE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private_key.public_key()),
                critical=False,
            )
            .sign(self.private_key, hashes.SHA256())
        )
        private_folder(folder)
        private_folder(stem.parent)
        paths = CertificatePaths(
            folder / "ca.pem", stem.with_name(f"{stem.name}.pem"), stem.with_name(f"{stem.name}.key")
        )
        if not paths.ca.exists():
            write_private(paths.ca, _certificate_pem(self.certificate))
        write_private(paths.key, _key_pem(key))
        write_private(paths.cert, _certificate_pem(certificate))
        return paths


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate, hexadecimal, as ``openssl x509 -fingerprint -sha256`` without colons."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def identity_from_chain(pem_leaf: bytes | str) -> Holder:
    """Who holds the leaf of a chain that TLS has verified.

    Raises:
        IdentityError: it does not name exactly one identity; the text is a short reason.

    """
    try:
        leaf = x509.load_pem_x509_certificate(pem_leaf.encode() if isinstance(pem_leaf, str) else pem_leaf)
    except ValueError:
        raise IdentityError("the certificate cannot be read") from None
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_ca = constraints.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if is_ca:
        raise IdentityError("a CA certificate identifies nobody")
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        raise IdentityError("the certificate has no SPIFFE id (no URI SAN)") from None
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} URI SANs, it must have exactly one")
    try:
        identity = parse_spiffe_id(uris[0])
    except ValueError as error:
        raise IdentityError(str(error)) from None
    if identity.role in _CONTAINED and len(names) != 1:
        raise IdentityError(f"a certificate of role {identity.role} must carry no SAN but its SPIFFE id")
    return Holder(identity, fingerprint(leaf), leaf.not_valid_after_utc)


def _places(dns_names: Iterable[str], ips: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(dns) for dns in dns_names]
    return names + [x509.IPAddress(ipaddress.ip_address(address)) for address in ips]


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
