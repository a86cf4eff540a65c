"""``mas keys``: what keys there are, and replacing them while the system runs."""

from __future__ import annotations

from typing import Annotated

import typer

from broker_policy.cli.app import Folder, Json, Output, app, command
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from broker_policy.keys.inventory import KEYS
from broker_policy.keys.rotate import rotate as rotate_key
from broker_policy.keys.site import Site

keys = typer.Typer(help="List and rotate the keys of the installation.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@command("list", group=keys, example="mas keys list --json")
def list_keys(*, folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """Each key: who holds it, where, how old it is, what its loss means, how it is rotated.

    Says nothing of what is in the files.
    """
    layout = Layout(folder.absolute())
    rows = [key.row(layout) for key in KEYS]
    lines = []
    for row in rows:
        age = "missing" if row["age_days"] is None else f"{row['age_days']:.1f} days, mode {row['mode']}"
        lines += [
            f"{row['name']:<17} {row['holder']}: {row['what']}",
            f"{'':<17} {row['file']} ({age})",
            f"{'':<17} loss: {row['loss']}",
            f"{'':<17} {row['rotate']}",
        ]
    Output(json=json).result({"keys": rows}, "\n".join(lines))


@command("rotate", group=keys, example="mas keys rotate tenant-signing")
async def rotate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As mas keys list names it.")],
    *,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="For a stolen key: no overlap, and holders that do not follow are cut off."
        ),
    ] = False,
    patience: Annotated[
        float, typer.Option("--patience", min=1, help="Seconds to wait for holders in each step.")
    ] = 30.0,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Replace a key while the system runs: both are valid until every holder uses the new one.

    Interrupted at any point, the same command goes on. Nothing that was accepted is lost.
    """
    out = Output(json=json)
    steps: list[str] = []

    def say(line: str) -> None:
        steps.append(line)
        out.progress(line)

    await rotate_key(Site(Layout(folder.absolute()), say, patience), name, now=now)
    out.result({"key": name, "rotated": True, "steps": steps}, f"{name} rotated")
