"""Rotating what TLS rests on: the certificates of the server and of the policy side, and the CA."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from broker_policy.embedded.certify import certify_policy
from broker_policy.embedded.layout import POLICY_HOLDERS
from broker_policy.embedded.ports import LOOPBACK
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.identity.private_files import sync_folder, write_private
from broker_policy.keys import followers
from broker_policy.keys.site import Site
from mas_nats.errors import ConfigurationError, Unavailable
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

_YEAR = timedelta(days=365)
_AGENTS = timedelta(days=30)
_AGAIN = "give the same command again when they are back"


async def rotate_server(site: Site) -> None:
    """A new certificate and key for the server; connections stay.

    Raises:
        ConfigurationError: its certificate was given.
        Unavailable: the server did not load it.

    """
    _require_own(site)
    before = await followers.loads(site)
    authority = CertificateAuthority.load(site.layout.authority)
    authority.issue_server(["localhost"], [LOOPBACK, "::1"], site.layout.certs, name="server")
    await followers.servers(site, followers.reloaded(before), "server certificate loaded")


async def rotate_policy(site: Site, holder: str) -> None:
    """A new certificate and key for ``holder`` of the policy side; it is used at the next connect."""
    authority = CertificateAuthority.load(site.layout.authority)
    identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.POLICY, holder)
    old = _leaf(site.layout.policy_certificate(holder).cert)
    authority.issue(identity, site.layout.certs, lifetime=_YEAR)
    async with site.control() as (controller, _):
        count = await controller.kick_certificate(old)
    site.say(f"{holder}: new certificate, {count} connections renewed")


async def rotate_ca(site: Site, *, now: bool) -> None:
    """A new CA: trusted beside the old one, then it issues, and with ``now`` the old one is trusted no more.

    Raises:
        ConfigurationError: there is no CA here: certificates come from elsewhere.
        Unavailable: the server did not load it; call again.

    """
    _require_own(site)
    authority = site.layout.authority
    overlap = authority / "retiring.pem"
    if not overlap.exists() or (authority / "next").exists():
        await _change_over(site, overlap)
    if not now:
        site.say(
            "both CAs are trusted. Give every agent elsewhere the new ca.pem and a new certificate, then end "
            "it with: mas keys rotate ca --now"
        )
        return
    await _end_overlap(site, overlap)


def _require_own(site: Site) -> None:
    if site.layout.given_tls.exists():
        raise ConfigurationError(
            "the server's certificate and the agents' CA were given: replace those files, they are followed"
        )


async def _change_over(site: Site, overlap: Path) -> None:
    authority = site.layout.authority
    following = authority / "next"
    if not (authority / "ca.key").exists():
        raise ConfigurationError(f"{authority} holds no CA: rotate it where certificates are issued")
    if not overlap.exists():  # one that is there was not made to the end, and nobody trusts it
        shutil.rmtree(following, ignore_errors=True)
        CertificateAuthority.create(following)
    new = (following / "ca.pem").read_bytes() if (following / "ca.pem").exists() else b""
    if new:
        old = (authority / "ca.pem").read_bytes()
        write_private(overlap, old)
        await _trust(site, new + old, "both CAs trusted")
        (following / "ca.pem").replace(authority / "ca.pem")
        sync_folder(authority)
    if (following / "ca.key").exists():
        (following / "ca.key").replace(authority / "ca.key")
        sync_folder(authority)
    issuer = CertificateAuthority.load(authority)
    certify_policy(site.layout, issuer)  # what was interrupted may have left one that nobody can use
    await rotate_server(site)
    for holder in POLICY_HOLDERS:
        await rotate_policy(site, holder)
    count = _issue_again(site, issuer)
    following.rmdir()
    site.say(f"the new CA issues; {count} certificates in {site.layout.certs} issued again")


def _issue_again(site: Site, issuer: CertificateAuthority) -> int:
    """New certificates for the agents, inspectors and operators that have theirs in this folder."""
    count = 0
    for role in (Role.AGENT, Role.INSPECTOR, Role.OPERATOR):
        for path in sorted(site.layout.certs.glob(f"*/{role}/*.pem")):
            identity = Identity(DEFAULT_TRUST_DOMAIN, path.parts[-3], role, path.stem)
            issuer.issue(identity, site.layout.certs, lifetime=_AGENTS)
            count += 1
    return count


async def _end_overlap(site: Site, overlap: Path) -> None:
    new = (site.layout.authority / "ca.pem").read_bytes()
    await _trust(site, new, "only the new CA trusted")
    async with site.control() as (controller, _):
        count, unseen = await controller.kick_certificate(_leaf(overlap)), controller.unseen
    if unseen:
        raise Unavailable(f"{unseen} nodes do not answer, and may have connections of the old CA: {_AGAIN}")
    overlap.unlink()
    sync_folder(overlap.parent)
    site.say(f"the old CA is trusted no more, {count} connections of its certificates ended")


async def _trust(site: Site, bundle: bytes, what: str) -> None:
    if site.layout.ca.read_bytes() == bundle:
        return
    before = await followers.loads(site)
    write_private(site.layout.ca, bundle)
    await followers.servers(site, followers.reloaded(before), what)


def _leaf(path: Path) -> str:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex()
