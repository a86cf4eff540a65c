"""``mas init``: a small project that works."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from broker_policy.cli.app import Json, Output, command
from mas_nats.errors import ConfigurationError

_FILES = ("mas.yaml", "agents.py", "test_agents.py")
_IGNORE = ".gitignore"
_IGNORED = ".mas/"
_REQUEST = """mas request --as visitor greeter greet '{"name": "Ada"}'"""


@command("init", example="mas init helpdesk")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where; made when it is missing.")
    ] = Path(),
    *,
    json: Json = False,
) -> None:
    """Write a small project: a manifest, two agents, a test, and what git is to ignore.

    Nothing is overwritten: where one of the files exists, none is written. A
    `.gitignore` that exists stays as it is.
    """
    out = Output(json=json)
    if there := [name for name in _FILES if os.path.lexists(folder / name)]:
        raise ConfigurationError(
            f"{', '.join(str(folder / name) for name in there)} exists: nothing was written. "
            "Choose another folder: mas init FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    templates = resources.files("broker_policy") / "new_project"
    written = []
    for name in _FILES:
        _write_new(folder / name, (templates / name).read_bytes())
        written.append(name)
    if (folder / _IGNORE).exists():
        if _IGNORED not in (folder / _IGNORE).read_text().splitlines():
            out.warn(f"{folder / _IGNORE} exists: add {_IGNORED} to it, which will hold private keys")
    else:
        _write_new(folder / _IGNORE, (templates / "gitignore").read_bytes())
        written.append(_IGNORE)
    commands = ["mas up --detach", "mas run", _REQUEST]
    if folder.resolve() != Path.cwd():
        commands[0] = f"cd {folder} && {commands[0]}"
    lines = [
        f"wrote {', '.join(written)} in {folder.resolve()}",
        "",
        f"  {commands[0]:<28} bring up the broker, with this manifest",
        f"  {commands[1]:<28} run the agents; Ctrl-C stops them",
        f"  {commands[2]}",
        f"  {'':<28} ask, in another terminal",
        "",
        "Tests (with pytest installed): python -m pytest. The end: mas down.",
    ]
    out.result({"folder": str(folder.resolve()), "written": written, "next": commands}, "\n".join(lines))


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as file:  # also when somebody made it meanwhile
        file.write(content)
