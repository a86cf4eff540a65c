"""Contexts of the ``nats`` command, in its own format and place.

A context is ``nats/context/<name>.json`` below ``$XDG_CONFIG_HOME`` (else ``~/.config``);
``nats/context.txt`` names the selected one.

Source: natscontext of github.com/nats-io/jsm.go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from broker_policy.identity.private_files import private_folder, write_private
from mas_nats.errors import ConfigurationError
from mas_nats.wire.identity import Identity, parse_spiffe_id

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_MARK = re.compile(r"mas: (?P<uri>spiffe://\S+)")
"""What the description of a context of ours says."""


@dataclass(frozen=True, slots=True)
class NatsContext:
    """A context for one identity. Paths are absolute; ``url`` may name several servers."""

    name: str
    identity: Identity
    url: str
    cert: Path
    key: Path
    ca: Path

    def document(self) -> dict[str, Any]:
        """As the ``nats`` command reads it."""
        return {
            "description": f"mas: {self.identity.uri}",
            "url": self.url,
            "cert": str(self.cert),
            "key": str(self.key),
            "ca": str(self.ca),
        }


class NatsContexts:
    """The contexts below ``root``, which is ``$XDG_CONFIG_HOME`` or ``~/.config`` where none is given."""

    def __init__(self, root: Path | None = None) -> None:
        self.folder = (root or _root()) / "nats"

    def path(self, name: str) -> Path:
        """The file of the context ``name``.

        Raises:
            ConfigurationError: no context can have this name.

        """
        if not _NAME.fullmatch(name) or ".." in name:
            raise ConfigurationError(
                f"{name[:80]!r} is no name for a context: use letters, digits, '-', '_' and '.', not '..'"
            )
        return self.folder / "context" / f"{name}.json"

    @property
    def selected(self) -> str:
        """The context that ``nats`` uses when none is named; "" where none is selected."""
        try:
            return (self.folder / "context.txt").read_text().strip()
        except OSError:
            return ""

    def require_ours(self, name: str) -> None:
        """Make sure that ``name`` is free, or one of ours.

        Raises:
            ConfigurationError: somebody else made it.

        """
        if self.path(name).exists() and self.read(name) is None:
            raise ConfigurationError(
                f"{self.path(name)} was not made by mas: choose another name, or remove it with "
                f"nats context rm {name}"
            )

    def write(self, context: NatsContext) -> Path:
        """Write a context, for its owner only; the file."""
        path = self.path(context.name)
        private_folder(path.parent)
        return write_private(path, orjson.dumps(context.document(), option=orjson.OPT_INDENT_2) + b"\n")

    def select(self, name: str) -> None:
        """Make it the one that is used when none is named, as ``nats context select`` does."""
        private_folder(self.folder)
        if before := self.selected:
            write_private(self.folder / "previous-context.txt", before.encode())
        write_private(self.folder / "context.txt", name.encode())

    def remove(self, name: str) -> bool:
        """Remove one of ours; False where there is none.

        Raises:
            ConfigurationError: somebody else made it.

        """
        self.require_ours(name)
        if not self.path(name).exists():
            return False
        self.path(name).unlink()
        if self.selected == name:
            (self.folder / "context.txt").unlink(missing_ok=True)
        return True

    def read(self, name: str) -> NatsContext | None:
        """One of ours; None where there is none, or where somebody else made it."""
        try:
            raw = orjson.loads(self.path(name).read_bytes())
            mark = _MARK.fullmatch(raw["description"])
            identity = parse_spiffe_id(mark["uri"]) if mark else None
            if identity is None:
                return None
            return NatsContext(
                name, identity, raw["url"], Path(raw["cert"]), Path(raw["key"]), Path(raw["ca"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def ours(self) -> Iterator[NatsContext]:
        """All of ours, by name."""
        for path in sorted((self.folder / "context").glob("*.json")):
            if _NAME.fullmatch(path.stem) and (found := self.read(path.stem)) is not None:
                yield found


def _root() -> Path:
    named = os.environ.get("XDG_CONFIG_HOME")
    return Path(named) if named else Path.home() / ".config"
