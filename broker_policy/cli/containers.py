"""``mas containers``: what the one-shot services of ``compose.yaml`` run."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import Folder, Json, Output, app, command
from broker_policy.containers.setup import choose_nodes, distribute, set_up
from broker_policy.embedded.batch_folders import BatchFolders
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.keys.turns import unchanged
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from broker_policy.tenants.provision import provision as make
from mas_nats.errors import ConfigurationError

containers = typer.Typer(help="Prepare the system in containers.", no_args_is_help=True)
app.add_typer(containers, name="containers")

Parts = Annotated[
    Path,
    typer.Option("--parts", help="The folder with a folder for each container's files, named as they are."),
]
_PARTS = Path("parts")
_EVERY = 0.5


@command("nodes", group=containers, example="mas containers nodes 3")
def nodes(
    count: Annotated[int, typer.Argument(metavar="COUNT", help="nats-servers: 1 or 3.")],
    *,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Say how many nats-servers there will be, before `mas containers setup` runs for the first time."""
    choose_nodes(Layout(folder.absolute()), count)
    Output(json=json).result({"nodes": count}, f"{count} nats-servers")


@command("setup", group=containers, example="mas containers setup --parts parts")
async def setup(
    *,
    parts: Parts = _PARTS,
    follow: Annotated[
        bool, typer.Option("--follow", help="Then hand out what changes, until interrupted: for rotations.")
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Make keys, certificates and the servers' configuration, and give each container its own files only.

    What is there stays, but for certificates that expire within a month. Needs no server.
    """
    out, layout = Output(json=json), Layout(folder.absolute())
    if not parts.is_dir():
        raise ConfigurationError(f"{parts} is not a folder: name that of the containers' files with --parts")
    if follow:
        await _follow(layout, parts, out)
    done = set_up(layout, parts, out.progress)
    what = "made" if done.new else "complete"
    agents = ", ".join(done.agents) or "none"
    out.result(asdict(done), f"installation {what}; nats-servers: {done.nodes}; agents: {agents}")


@command("provision", group=containers, example="mas containers provision --manifest mas.yaml")
async def provision(
    *,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="A mas.yaml to apply.")] = None,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Make accounts and streams in the running servers, those that were lost too, and apply a manifest."""
    out, layout = Output(json=json), Layout(folder.absolute())
    connection = Broker.read(layout).connection(layout, "controller")
    with unchanged(layout.keys):
        keys, public = ControllerKeys.load(layout.keys), PublicMaterial.load(layout.keys)
        said = await make(connection, keys, public, manifest)
    out.result({"said": said}, "\n".join(["accounts and streams are complete", *said]))


@command("batches", group=containers, example="mas containers batches --store /data --memory /batches")
async def batches(
    *,
    store: Annotated[Path, typer.Option("--store", help="Where the nats-server keeps its data.")],
    memory: Annotated[
        Path, typer.Option("--memory", help="A folder in memory, at the same path where the server runs.")
    ],
    json: Json = False,
) -> None:
    """Let the one nats-server gather batches in memory, until interrupted."""
    out, folders = Output(json=json), BatchFolders(store, memory=memory)
    if not folders.prepare(0):
        raise ConfigurationError(f"{memory} is no folder in which this user can have a private one")
    if folders.prepare():
        out.progress(f"batches of {store} are gathered in {memory}; Ctrl-C ends it")
    else:
        out.warn(f"{memory} has less than 32 MB free: until it has, batches are gathered on the disk")
    await folders.follow()


async def _follow(layout: Layout, parts: Path, out: Output) -> None:
    out.progress("handing out what changes; Ctrl-C ends it")
    broken = ""
    while True:
        try:
            distribute(layout, parts, out.progress)
            broken = ""
        except (ConfigurationError, OSError) as error:  # half of a rotation: the next look sees the rest
            if str(error) != broken:
                out.warn(f"nothing is handed out: {error}")
            broken = str(error)
        await asyncio.sleep(_EVERY)
