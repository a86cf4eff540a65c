"""The real ``nats`` command, as a person uses it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 30.0


def binary() -> Path | None:
    """The one that ``make nats-cli`` built, else of the PATH."""
    built = Path(sys.prefix) / "mas-nats" / "bin" / "nats"
    found = str(built) if built.exists() else shutil.which("nats")
    return Path(found) if found else None


@dataclass(frozen=True)
class Said:
    """What a command printed, both streams together, with all runs of blanks as one; and how it ended."""

    code: int
    text: str


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
        return Said(done.returncode, _plain(done.stdout))

    def watch(self, *command: str, until: str) -> Said:
        """Run a command in a terminal until it has printed ``until`` or ends; then end it."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        text, deadline = "", time.monotonic() + _PATIENCE
        try:
            while (not until or until not in _plain(text)) and time.monotonic() < deadline:
                if select.select([ours], [], [], 0.2)[0]:
                    try:
                        text += os.read(ours, 65536).decode(errors="replace")
                    except OSError:  # it has ended, and closed its side
                        break
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            os.close(ours)
        return Said(process.returncode, _plain(text))


def _plain(text: str) -> str:
    return " ".join(text.split())
