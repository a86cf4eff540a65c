"""Which policy a command is about: that of a manifest, or of a broker that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.material import ControllerKeys
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import documents, mas_yaml
from mas_nats.policy.table import Table

Manifest = Annotated[
    Path | None, typer.Option("--manifest", help="The manifest; the nearest mas.yaml when not given.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="Ask the policy of the broker that runs there instead.")
]


async def source(
    manifest: Path | None, folder: Path | None, namespace: str
) -> tuple[Table, str, dict[str, Table] | None]:
    """The policy, what to call it, and the policies of all namespaces where those are known.

    Raises:
        ConfigurationError: there is none, or it is not clear which.

    """
    if folder is None:
        return declared(manifest, namespace)
    if manifest is not None:
        raise ConfigurationError("give --manifest or --folder, not both")
    layout = Layout(folder.absolute())
    endpoint = Broker.read(layout).connection(layout, "controller")
    control = await connect_control_admin(endpoint, ControllerKeys.load(layout.keys))
    try:
        stored = await PolicyStore(control).namespaces()
    finally:
        await control.close()
    tables = {each.document.namespace: Table.compile(each.document, each.sequence) for each in stored}
    if namespace not in tables:
        raise ConfigurationError(f"there is no namespace {namespace!r} in {layout.root}")
    table = tables[namespace]
    return table, f"revision {table.revision} of namespace {namespace}", tables


def declared(named: Path | None, namespace: str) -> tuple[Table, str, dict[str, Table] | None]:
    """The policy of a manifest, its path, and the policies of all its namespaces where it declares several.

    Raises:
        ConfigurationError: there is none, or it is wrong.

    """
    path = named or mas_yaml.find(Path.cwd())
    if path is None:
        raise ConfigurationError(f"there is no {mas_yaml.FILE_NAME} here or above: name it with --manifest")
    manifest = documents.load(path)
    chosen = manifest.of(namespace)
    tables = {each.namespace: Table.compile(each.wanted.document(), 0) for each in manifest.namespaces}
    if len(tables) == 1:
        return tables[chosen.namespace], str(path), None
    return tables[chosen.namespace], f"namespace {chosen.namespace} of {path}", tables
