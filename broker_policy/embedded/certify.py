"""The certificates of servers and of the policy side, made anew when they are about to expire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker_policy.embedded import given_tls
from broker_policy.embedded.layout import DEFAULT_TLS_HOSTNAME, POLICY_HOLDERS, Layout
from broker_policy.embedded.plan import TlsFiles
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

YEAR = timedelta(days=365)
"""How long they are valid."""
_RENEW = timedelta(days=30)


def certify(layout: Layout, given: TlsFiles | None = None, *, also: Iterable[str] = ()) -> str:
    """The certificates of the server and of the policy side; what the server's is for.

    The server's is for this machine, and for the DNS names ``also`` where it has to be made.
    """
    authority = CertificateAuthority.open_or_create(layout.authority)
    if given is None:
        given_tls.forget(layout)
        if to_be_made(layout.server_cert):
            names = [DEFAULT_TLS_HOSTNAME, *also]
            authority.issue_server(names, [LOOPBACK, "::1"], layout.certs, name="server")
    certify_policy(layout, authority)
    return DEFAULT_TLS_HOSTNAME if given is None else given_tls.install(layout, given)


def certify_policy(layout: Layout, authority: CertificateAuthority) -> None:
    """The certificates of the policy side, where they have to be made."""
    for holder in POLICY_HOLDERS:
        if to_be_made(layout.policy_certificate(holder).cert):
            identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.POLICY, holder)
            authority.issue(identity, layout.certs, lifetime=YEAR)


def certify_routes(layout: Layout) -> None:
    """The certificate with which the nodes know one another, from a CA that signs nothing else."""
    if to_be_made(layout.route_certificate.cert):
        authority = CertificateAuthority.open_or_create(layout.route_authority)
        authority.issue_peer([], [LOOPBACK], layout.route_certificate.cert.parent, name="route")


def to_be_made(path: Path) -> bool:
    """Whether the certificate ``path`` is missing, torn, or valid for less than a month."""
    if not path.exists():
        return True
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc < datetime.now(UTC) + _RENEW or torn(path)


def torn(path: Path) -> bool:
    """Whether the key beside the certificate ``path`` is missing or not its own; no where it may not be read.

    They are two files, and who replaced them may have been killed between.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
    except PermissionError:
        return False
    except (FileNotFoundError, TypeError, ValueError):
        return True
    return key.public_key() != certificate.public_key()
