"""Ends what the runner has started when the runner itself is gone, however it ended.

``dies_with_parent`` ends the agents, on Linux. This ends what *they* have started, too, and everything where
the kernel has no such call: a small process of its own that knows the process groups, and kills them when the
pipe from the runner ends. It is run as a file, with the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Self


class Guard:
    """The runner's side. Use it as ``with Guard() as guard:``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor the end of the terminal is for it
            cwd="/",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # ends its input, and so it

    def add(self, group: int) -> None:
        """A process group to end with the runner."""
        self._say(f"+{group}\n")

    def remove(self, group: int) -> None:
        """It has ended; its number may be given to somebody else."""
        self._say(f"-{group}\n")

    def _say(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody has ended it; agents run on without
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()


def main() -> None:
    """The guard's process: remember groups until the input ends, then end those that are left."""
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line[1:])
        (groups.add if line.startswith("+") else groups.discard)(number)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
