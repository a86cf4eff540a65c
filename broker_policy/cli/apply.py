"""``mas apply``: agents and permissions from a manifest, into the running broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Output, command, operator_name
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.keys.turns import unchanged
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply as apply_wanted
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml


@command("apply", example="mas apply mas.yaml")
async def apply(
    file: Annotated[
        Path | None, typer.Argument(help="The manifest; the nearest mas.yaml when not given.")
    ] = None,
    *,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Bring the running broker to what a manifest says; done when every live worker follows.

    Applying the same again changes nothing. Agents that the manifest no longer names are disconnected, and
    the messages that wait for them become dead letters (AGENT_REMOVED): see `mas dlq`. Their state is kept.
    """
    out = Output(json=json)
    path = file or mas_yaml.find(Path.cwd())
    if path is None:
        raise ConfigurationError(f"there is no {mas_yaml.FILE_NAME} here or above: name the manifest")
    wanted = mas_yaml.load(path).wanted()
    layout = Layout(folder.absolute())
    endpoint = Broker.read(layout).connection(layout, "controller")
    with unchanged(layout.keys):
        keys, public = ControllerKeys.load(layout.keys), PublicMaterial.load(layout.keys)
        async with TenantController(endpoint, keys, public) as controller:
            control = await connect_control_admin(endpoint, keys)
            try:
                applied = await apply_wanted(
                    controller, PolicyStore(control), wanted, by=operator_name(), progress=out.progress
                )
            finally:
                await control.close()
    for notice in applied.notices:
        out.warn(notice)
    lines = [f"+ {name}" for name in applied.added] + [f"- {name}" for name in applied.removed]
    lines += [
        f"  {each.agent}: {each.buried} messages are dead letters" for each in applied.retired if each.buried
    ]
    for each in applied.unfinished:
        out.warn(f"{each.agent} is removed, but what it left is not cleared: {each.left}")
    what = "applied" if applied.changed else "nothing to change"
    lines.append(f"{path}: {what}, namespace {applied.namespace} is at revision {applied.revision}")
    document = {
        "file": str(path),
        "namespace": applied.namespace,
        "revision": applied.revision,
        "changed": applied.changed,
        "added": applied.added,
        "removed": applied.removed,
        "notices": applied.notices,
        "retired": [{"agent": each.agent, "buried": each.buried} for each in applied.retired],
        "unfinished": [{"agent": each.agent, "reason": each.left} for each in applied.unfinished],
    }
    out.result(document, "\n".join(lines))
    if applied.unfinished:
        raise typer.Exit(ExitCode.FAILED)
