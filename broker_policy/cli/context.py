"""``mas context``: contexts with which the ordinary ``nats`` command looks into a namespace."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Namespace, Output, app, command, operator_name
from broker_policy.cli.certs import Hours
from broker_policy.embedded.layout import DEFAULT_FOLDER, DEFAULT_TLS_HOSTNAME, Layout
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.pki import CertificateAuthority, identity_from_chain
from broker_policy.keys.site import Site
from broker_policy.nats_contexts import NatsContext, NatsContexts
from broker_policy.policy.store import NotConfirmed
from broker_policy.tenants.people import ensure_declared
from mas_nats.errors import ConfigurationError, Unavailable
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role, require_id

context = typer.Typer(help="Contexts for the nats command.", no_args_is_help=True)
app.add_typer(context, name="context")

_MONTH = 30 * 24.0
_ROLES = {Role.INSPECTOR: "inspectors", Role.OPERATOR: "operators"}


class Looker(StrEnum):
    """Who may have a context."""

    INSPECTOR = Role.INSPECTOR
    OPERATOR = Role.OPERATOR


def _known_names() -> list[str]:
    return [each.name for each in NatsContexts().ours()]


@command("add", group=context, example="mas context add --role inspector --select")
async def add(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The context; mas-NAMESPACE-ROLE when not given.")
    ] = "",
    *,
    role: Annotated[
        Looker,
        typer.Option("--role", help="inspector: reads and changes nothing; operator: may do everything."),
    ] = Looker.INSPECTOR,
    who: Annotated[
        str, typer.Option("--as", help="Who uses it: an id for the audit; this system's user if not given.")
    ] = "",
    namespace: Namespace = DEFAULT_NAMESPACE,
    select: Annotated[
        bool, typer.Option("--select", help="Make it the one that nats uses without --context.")
    ] = False,
    cert: Annotated[
        Path | None,
        typer.Option("--cert", help="A certificate of your own issuer, which says who and what you are."),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The key of --cert.")] = None,
    hours: Hours = _MONTH,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Write a context for the nats command, and let policy know who uses it.

    Without --cert a development certificate is issued. Whom the manifest does not name (`inspectors:`,
    `operators:`) policy knows until the manifest is applied again. Repeat the command when the broker's
    address has changed or the certificate has expired.
    """
    out = Output(json=json)
    if (cert is None) != (key is None):
        raise ConfigurationError("--cert and --key belong together: give both, or neither")
    site = Site(Layout(folder.absolute()), out.progress)
    broker = site.broker
    if cert is None:
        person = require_id(who, "--as") if who else _id_of(operator_name())
        identity = Identity(DEFAULT_TRUST_DOMAIN, require_id(namespace, "namespace"), Role(role), person)
    else:
        identity = identity_from_chain(cert.read_bytes()).identity
        if identity.role not in _ROLES:
            raise ConfigurationError(f"{cert} is of {identity.uri}, which is no inspector and no operator")
    contexts = NatsContexts()
    name = name or f"mas-{identity.namespace}-{identity.role}"
    contexts.require_ours(name)
    async with site.control() as (controller, store):
        try:
            declared = await ensure_declared(controller, store, identity)
        except KeyError:
            raise ConfigurationError(
                f"there is no namespace {identity.namespace!r}: apply a manifest first (mas apply)"
            ) from None
        except NotConfirmed as error:
            raise Unavailable(str(error)) from None
    paths = _issued(site.layout, identity, hours) if cert is None or key is None else None
    written = NatsContext(
        name,
        identity,
        broker.url,
        paths.cert if paths else Path(cert or "").absolute(),
        paths.key if paths else Path(key or "").absolute(),
        Path(broker.ca),
    )
    path = contexts.write(written)
    if select:
        contexts.select(name)
    if declared:
        out.warn(
            f"policy knows {identity.role} {identity.name} now; add {_ROLES[identity.role]}: "
            f"[{identity.name}] to the manifest, else the next mas apply takes it away"
        )
    if broker.tls_hostname != DEFAULT_TLS_HOSTNAME:
        out.warn(
            f"the server's certificate is for {broker.tls_hostname}, and nats asks for the host of its "
            f"address: give it with --server tls://{broker.tls_hostname}:PORT where they differ"
        )
    flag = "" if contexts.selected == name else f" --context {name}"
    text = f"{path}\n  nats{flag} stream ls --all\n  nats{flag} kv ls\n  nats{flag} micro ls"
    out.result({**_row(written, contexts), "file": str(path), "declared": declared}, text)


@command("list", group=context, example="mas context list --json")
def list_(*, json: Json = False) -> None:
    """List the contexts that mas has written."""
    contexts = NatsContexts()
    found = [_row(each, contexts) for each in contexts.ours()]
    lines = [
        f"{'*' if row['selected'] else ' '} {row['name']}  {row['identity']}  {row['url']}" for row in found
    ]
    lines.append(f"{len(found)} contexts in {contexts.folder / 'context'}")
    Output(json=json).result({"folder": str(contexts.folder), "contexts": found}, "\n".join(lines))


@command("remove", group=context, example="mas context remove mas-default-inspector")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The context.", autocompletion=_known_names)],
    *,
    json: Json = False,
) -> None:
    """Remove a context that mas has written. Its certificate stays valid: see `mas certs revoke`."""
    out = Output(json=json)
    removed = NatsContexts().remove(name)
    out.result({"name": name, "removed": removed}, "removed" if removed else f"there is no context {name}")
    if not removed:
        raise typer.Exit(ExitCode.FAILED)


def _row(each: NatsContext, contexts: NatsContexts) -> dict[str, object]:
    return {
        "name": each.name,
        "namespace": each.identity.namespace,
        "role": each.identity.role,
        "identity": each.identity.uri,
        "url": each.url,
        "selected": contexts.selected == each.name,
    }


def _issued(layout: Layout, identity: Identity, hours: float) -> CertificatePaths:
    authority = CertificateAuthority.open_or_create(layout.authority)
    return authority.issue(identity, layout.certs, lifetime=timedelta(hours=hours))


def _id_of(user: str) -> str:
    """The name of a user of this system as an id."""
    found = re.sub(r"[^a-z0-9_-]+", "-", user.lower()).strip("-_")[:63]
    return found or "somebody"
