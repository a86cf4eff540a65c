"""``mas manifest``: what may stand in a manifest, and whether one is right. Neither needs a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import Json, Output, app, command
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents, mas_yaml, schema
from mas_nats.manifest.schema import Form

manifest_app = typer.Typer(help="Check manifests, and print their JSON schema.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")


@command("schema", group=manifest_app, example="mas manifest schema --kind casa > casa.schema.json")
def print_schema(
    *,
    kind: Annotated[Form, typer.Option("--kind", help="Of a mas.yaml, or of CASA's documents.")] = Form.MAS,
    json: Json = False,
) -> None:
    """Print the JSON schema of a manifest, with which an editor completes and checks it."""
    Output(json=json).result(schema.schema(kind), schema.text(kind).rstrip("\n"))


@command("check", group=manifest_app, example="mas manifest check mas.yaml casa.yaml")
def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Else $MAS_RUNNER_CONFIG_FILE, else the nearest mas.yaml."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Read manifests, of either form, and say what they declare; every mistake is named with its line."""
    out = Output(json=json)
    paths = files or [path for path in [mas_yaml.chosen(None)] if path is not None]
    if not paths:
        raise ConfigurationError(f"there is no {mas_yaml.FILE_NAME} here or above: name the manifest")
    manifest = documents.load(*paths)
    for notice in manifest.told:
        out.warn(notice)
    document = {
        "files": manifest.files,
        "namespaces": [
            {"namespace": one.namespace, "where": one.where, "agents": sorted(one.wanted.agents)}
            for one in manifest.namespaces
        ],
        "notices": manifest.told,
    }
    lines = [
        f"{one.where}: namespace {one.namespace}, {len(one.wanted.agents)} agents"
        for one in manifest.namespaces
    ]
    out.result(document, "\n".join(lines))
