"""The reference of the ``mas`` command in ``docs/cli.md``, made from the commands.

``python -m broker_policy.cli_reference docs/cli.md`` brings the file up to date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo

from broker_policy import cli
from broker_policy.cli.app import MEANINGS, app
from mas_nats.made_pages import filled, rewrite

_SHARED = ("--json", "--folder", "--namespace")
"""Options that most commands have: told once."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its words, in alphabetical order."""
    cli.load()
    yield from _below(typer.main.get_command(app), "mas")


def reference() -> str:
    """Exit codes, an index, and a section for each command."""
    found = list(commands())
    codes = [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    index = [f"| [`{name}`](#{_anchor(name)}) | {_summary(each)} |" for name, each in found]
    parts = [
        "## Exit codes",
        "\n".join(("| code | |", "|---|---|", *codes)),
        "## Commands",
        "\n".join(("| command | |", "|---|---|", *index)),
        *(_section(name, each) for name, each in found),
    ]
    return "\n\n".join(parts)


def current(page: str) -> str:
    """``page`` with today's reference between its marks."""
    return filled(page, {"begin": reference})


def _below(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, each in sorted(group.commands.items()):
        if hasattr(each, "commands"):
            yield from _below(each, f"{path} {name}")
        else:
            yield f"{path} {name}", each


@dataclass(frozen=True, slots=True)
class _Parameter:
    """An argument or option of a command, as its function declares it."""

    name: str
    names: tuple[str, ...]  # as they are written
    said: Any  # typer's ArgumentInfo or OptionInfo
    kind: Any  # a type
    default: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.said, ArgumentInfo)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def row(self) -> str:
        """Its line of the table."""
        named = f"`{self.written()}`" if self.is_argument else ", ".join(f"`{name}`" for name in self.names)
        value = "" if self.is_argument or self.kind is bool else f" {self._value()}"
        return f"| {named}{value} | {self._told()} |"

    def written(self) -> str:
        """An argument in a usage line."""
        name = str(self.said.metavar or self.name.upper())
        return name if self.required or name.startswith("[") else f"[{name}]"

    def _value(self) -> str:
        kinds = [kind for kind in (self.kind, *get_args(self.kind)) if isinstance(kind, type)]
        if self.said.metavar:
            return _escaped(str(self.said.metavar))
        for kind in kinds:
            if issubclass(kind, Enum):
                return ", ".join(str(each.value) for each in kind)
            if kind in _VALUES:
                return _VALUES[kind]
        return "text"

    def _told(self) -> str:
        said = _escaped(self.said.help or "")
        if self.required:
            return said if self.is_argument else f"{said} Required."
        value = self.default.value if isinstance(self.default, Enum) else self.default
        return said if value in (None, "", False, ()) else f"{said} Default: `{value}`."


_VALUES: dict[type, str] = {int: "number", float: "number", Path: "path"}


def _parameters(each: Any) -> Iterator[_Parameter]:
    names = {parameter.name: tuple(parameter.opts) for parameter in each.params}
    for name, found in inspect.signature(each.callback.__wrapped__, eval_str=True).parameters.items():
        kind, *said = get_args(found.annotation)
        yield _Parameter(name, names[name], said[-1], kind, found.default)


def _section(name: str, each: Any) -> str:
    parameters = list(_parameters(each))
    arguments = [parameter for parameter in parameters if parameter.is_argument]
    options = [parameter for parameter in parameters if not parameter.is_argument]
    own = [option for option in options if not set(option.names) & set(_SHARED)]
    shared = [word for option in options for word in option.names if word in _SHARED]
    usage = " ".join((name, *(["[OPTIONS]"] if own else []), *(each.written() for each in arguments)))
    parts = [f"### {name}", inspect.cleandoc(each.help), f"```text\n{usage}\n```"]
    if rows := [parameter.row() for parameter in (*arguments, *own)]:
        parts.append("\n".join(("| | |", "|---|---|", *rows)))
    parts.append(f"Also: {', '.join(f'`{word}`' for word in shared)}.")
    parts.append(f"```console\n$ {each.epilog.removeprefix('Example: ')}\n```")
    return "\n\n".join(parts)


def _summary(each: Any) -> str:
    return _escaped(" ".join(inspect.cleandoc(each.help).split("\n\n")[0].split()))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", name.replace(" ", "-"))


if __name__ == "__main__":
    rewrite(current)
