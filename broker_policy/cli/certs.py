"""``mas certs``: development certificates. In production any SPIFFE issuer takes their place."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import Folder, Json, Namespace, Output, app, command
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role, require_id

certs = typer.Typer(help="Issue development certificates.", no_args_is_help=True)
app.add_typer(certs, name="certs")

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="One or more ids.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Where to write them; certs/ of the folder if not given.")
]
_CENTURY = 100 * 365 * 24.0
Hours = Annotated[float, typer.Option("--hours", min=0.01, max=_CENTURY, help="How long they are valid.")]

_MONTH = 30 * 24.0


@command("agent", group=certs, example="mas certs agent alice bob --hours 8")
def agent(
    names: Names,
    *,
    namespace: Namespace = DEFAULT_NAMESPACE,
    out: Out = None,
    hours: Hours = _MONTH,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Issue certificates for agents."""
    _issue(Role.AGENT, names, namespace, out, hours, folder, Output(json=json))


@command("inspector", group=certs, example="mas certs inspector carol")
def inspector(
    names: Names,
    *,
    namespace: Namespace = DEFAULT_NAMESPACE,
    out: Out = None,
    hours: Hours = _MONTH,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Issue certificates for people or tools that may look and change nothing."""
    _issue(Role.INSPECTOR, names, namespace, out, hours, folder, Output(json=json))


@command("operator", group=certs, example="mas certs operator dave --hours 1")
def operator(
    names: Names,
    *,
    namespace: Namespace = DEFAULT_NAMESPACE,
    out: Out = None,
    hours: Hours = _MONTH,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Issue certificates for people or CI jobs that run the system."""
    _issue(Role.OPERATOR, names, namespace, out, hours, folder, Output(json=json))


@command("server", group=certs, example="mas certs server nats1.example.org --ip 10.0.0.5 --out certs")
def server(
    names: Annotated[list[str], typer.Argument(metavar="HOST...", help="DNS names of the server.")],
    *,
    ip: Annotated[list[str] | None, typer.Option("--ip", help="An address of the server.")] = None,
    out: Out = None,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Issue a certificate for a NATS server."""
    layout = Layout(folder.absolute())
    layout.create()
    authority = CertificateAuthority.open_or_create(layout.authority)
    paths = authority.issue_server(names, ip or (), out or layout.certs / "servers", name=names[0])
    _show([_row(names[0], "", paths)], Output(json=json))


def _issue(
    role: Role, names: list[str], namespace: str, out: Path | None, hours: float, folder: Path, output: Output
) -> None:
    require_id(namespace, "namespace")
    for name in names:
        require_id(name, role)
    layout = Layout(folder.absolute())
    layout.create()
    authority = CertificateAuthority.open_or_create(layout.authority)
    rows = []
    for name in names:
        identity = Identity(DEFAULT_TRUST_DOMAIN, namespace, role, name)
        paths = authority.issue(
            identity, out or layout.certs, lifetime=timedelta(hours=hours), flat=out is not None
        )
        rows.append(_row(name, identity.uri, paths))
    _show(rows, output)


def _row(name: str, uri: str, paths: CertificatePaths) -> dict[str, str]:
    return {
        "name": name,
        "spiffe_id": uri,
        "cert": str(paths.cert),
        "key": str(paths.key),
        "ca": str(paths.ca),
    }


def _show(rows: list[dict[str, str]], output: Output) -> None:
    lines = [line for row in rows for line in (row["spiffe_id"] or row["name"], f"  {row['cert']}")]
    output.result({"certificates": rows}, "\n".join(lines))
