"""The real ``nats`` command, as a person uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.terminal import Said, in_terminal, plain


def binary() -> Path | None:
    """The one that ``make nats-cli`` built, else of the PATH."""
    built = Path(sys.prefix) / "mas-nats" / "bin" / "nats"
    found = str(built) if built.exists() else shutil.which("nats")
    return Path(found) if found else None


@dataclass(frozen=True)
class NatsCli:
    """Runs commands with contexts in a folder of their own."""

    config: Path
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Of every command: ``nats`` and ``mas`` are in the PATH, and contexts in ``config``."""
        here = [str(Path(sys.executable).parent), *([str(found.parent)] if (found := binary()) else [])]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
        path = os.pathsep.join((*here, kept.get("PATH", "")))
        return {**kept, "PATH": path, "XDG_CONFIG_HOME": str(self.config), "TERM": "dumb", "COLUMNS": "200"}

    def run(self, *command: str) -> Said:
        """Run a command to its end."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return Said(done.returncode, plain(done.stdout))

    def watch(self, *command: str, until: str) -> Said:
        """Run a command in a terminal until it has printed ``until`` or ends; then end it."""
        return in_terminal(command, until=until, folder=self.folder, environment=self.environment)
