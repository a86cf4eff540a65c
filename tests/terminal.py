"""Commands in a terminal of their own, as a person sits at one."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 30.0


@dataclass(frozen=True)
class Said:
    """What a command printed, both streams together, with all runs of blanks as one; and how it ended."""

    code: int
    text: str


def plain(text: str) -> str:
    """``text`` with all runs of blanks as one."""
    return " ".join(text.split())


def in_terminal(
    command: Sequence[str],
    *,
    until: str,
    keys: str = "",
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Said:
    """Run a command in a terminal until it has printed ``until`` or ends.

    Then ``keys`` are pressed, and it shall end by itself; where there are none it is ended.
    """
    ours, theirs = pty.openpty()
    # The leader of a session gets the first terminal that it opens as its own: so that keys become signals.
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs), *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    text = ""
    try:
        text = _read(ours, until, process)
        if keys:
            os.write(ours, keys.encode())
            text += _read(ours, "", process)
        else:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    return Said(process.returncode, plain(text))


def _read(terminal: int, until: str, process: subprocess.Popen[bytes]) -> str:
    """What comes until ``until`` has come, or the process has ended."""
    text, deadline = "", time.monotonic() + _PATIENCE
    while (not until or until not in plain(text)) and time.monotonic() < deadline:
        ended = process.poll() is not None
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
        elif ended:
            break
    return text
