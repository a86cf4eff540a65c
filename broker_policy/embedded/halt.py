"""Halting processes (SIGSTOP): the signal is sent at once and reaches the last thread a little later."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from pathlib import Path


def halt(*pids: int, within: float = 5.0) -> None:
    """Send SIGSTOP to each process and return when none of their threads runs any more.

    Blocks, usually for less than a millisecond. SIGCONT lets a process go on.

    Args:
        pids: processes, of anybody.
        within: seconds that all of them have together.

    Raises:
        ProcessLookupError: one has ended; its ``filename`` is the process id.
        TimeoutError: one did not halt; the text names it.

    """
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            raise _ended(pid) from None
    deadline = time.monotonic() + within
    for pid in pids:
        while not (states := _states(pid)) <= {"T", "t"}:
            if states <= {"Z", "X"}:
                raise _ended(pid)
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} did not halt")
            time.sleep(0.0005)
        if not states:
            raise _ended(pid)


def _states(pid: int) -> set[str]:
    """What its threads do, as proc(5) and ps(1) abbreviate it; empty when there is no such process."""
    threads = Path(f"/proc/{pid}/task")
    if not Path("/proc/self/task").exists():
        command = ["ps", "-o", "state=", "-p", str(pid)]
        return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()[:1])
    states = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in threads.iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states


def _ended(pid: int) -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid))
