"""``mas certs revoke`` and ``mas kick``: who is out at once, and who is asked again who it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, command
from broker_policy.cli.certs import certs
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from broker_policy.keys.site import Site
from broker_policy.policy.store import NotConfirmed
from broker_policy.tenants.accounts import grant_for
from broker_policy.tenants.revoke import revoke as revoke_certificates
from mas_nats.errors import ConfigurationError, Unavailable
from mas_nats.policy.document import Revocation
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role, require_id

_HEX = frozenset("0123456789abcdef")
AsRole = Annotated[Role, typer.Option("--role", help="agent, inspector or operator.")]


@command("revoke", group=certs, example="mas certs revoke alice && mas certs agent alice")
async def revoke(
    name: Annotated[str, typer.Argument(help="Whose certificates; not needed with --fingerprint.")] = "",
    *,
    role: AsRole = Role.AGENT,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option("--fingerprint", help="SHA-256 of a certificate, hexadecimal, colons allowed."),
    ] = None,
    file: Annotated[list[Path] | None, typer.Option("--cert", help="A certificate file, PEM.")] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Let nobody in with a certificate any more; whoever uses it now is disconnected.

    By NAME: the certificates that its connections show now, and the one in the folder. A certificate that is
    issued afterwards is let in. Copies of older ones: name them with --fingerprint (the audit has the
    fingerprint of every certificate that was ever shown).
    """
    out = Output(json=json)
    site = Site(Layout(folder.absolute()), out.progress)
    found: dict[str, Revocation] = {}
    now = int(time.time())
    uri = _identity(namespace, role, name).uri if name else ""
    for each in fingerprint or ():
        found[_fingerprint(each)] = Revocation(identity=uri, at=now)
    for path in file or ():
        found |= _of_file(path, uri, now)
    async with site.control() as (controller, store):
        if name and not found:
            issued = site.layout.certs / namespace / role / f"{name}.pem"
            shown = await controller.certificates_of(uri)
            found = {each: Revocation(identity=uri, at=now) for each in shown}
            found |= _of_file(issued, uri, now) if issued.exists() else {}
        if not found:
            if not name:
                raise ConfigurationError("say whose: NAME, or which with --fingerprint or --cert")
            raise ConfigurationError(
                f"no certificate of {name} is known here: name it with --fingerprint or --cert"
            )
        try:
            done = await revoke_certificates(controller, store, namespace, found)
        except KeyError:
            raise ConfigurationError(f"there is no namespace {namespace!r}") from None
        except NotConfirmed as error:
            raise Unavailable(str(error)) from None
    out.result(
        {
            "namespace": namespace,
            "revision": done.revision,
            "revoked": done.fingerprints,
            "disconnected": done.disconnected,
            "unseen_nodes": done.unseen,
        },
        "\n".join((*done.fingerprints, f"revoked, {done.disconnected} connections ended")),
    )
    _require_all_seen(out, done.unseen)


@command("kick", example="mas kick alice")
async def kick(
    name: Annotated[str, typer.Argument(help="An agent id.")],
    *,
    role: AsRole = Role.AGENT,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Disconnect an agent: it is back at once, with the permissions of this moment, if it still may."""
    out = Output(json=json)
    identity = _identity(namespace, role, name)
    uri = identity.uri
    async with Site(Layout(folder.absolute()), out.progress).control() as (controller, store):
        count, unseen = await controller.kick(uri), controller.unseen
        if not count and not unseen:
            stored = await store.get(namespace)
            if stored is None or grant_for(stored.document, identity) is None:
                raise ConfigurationError(f"there is no {role} {name!r} in namespace {namespace!r}")
    document = {"identity": uri, "disconnected": count, "unseen_nodes": unseen}
    out.result(document, f"{count} connections of {uri} ended")
    _require_all_seen(out, unseen)


def _require_all_seen(out: Output, unseen: int) -> None:
    if unseen:
        out.warn(
            f"{unseen} nodes do not answer: connections that they have were not ended. Give the same command "
            "again when they are back"
        )
        raise typer.Exit(ExitCode.FAILED)


def _identity(namespace: str, role: Role, name: str) -> Identity:
    require_id(namespace, "namespace")
    return Identity(DEFAULT_TRUST_DOMAIN, namespace, role, require_id(name, f"{role} id"))


def _of_file(path: Path, uri: str, now: int) -> dict[str, Revocation]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    until = int(certificate.not_valid_after_utc.timestamp())
    found = certificate.fingerprint(hashes.SHA256()).hex()
    return {found: Revocation(identity=uri, at=now, until=until)}


def _fingerprint(text: str) -> str:
    found = text.replace(":", "").strip().lower()
    if len(found) != 64 or not _HEX.issuperset(found):
        raise ConfigurationError(f"{text!r} is no SHA-256 fingerprint: it has 64 hexadecimal digits")
    return found
