"""Halting the servers for a moment, so that what lies on disk is of one moment.

First the workers, so that no batch is half in the log; then nats-server; then Redis, which therefore is
never behind what was removed from the log. Whatever happens to us, a guard lets them go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from broker_policy.backup.errors import BackupError
from broker_policy.embedded.halt import halt

_GUARD = (
    "import os,signal,sys\n"
    "sys.stdin.buffer.read()\n"  # until our end of the pipe is closed, by us or by our death
    "for pid in map(int, sys.argv[1:]):\n"
    "    try: os.kill(pid, signal.SIGCONT)\n"
    "    except OSError: pass\n"
)


@dataclass(frozen=True, slots=True)
class Servers:
    """The processes of a running ``mas up``."""

    nats: int
    redis: int
    workers: tuple[int, ...]

    @classmethod
    def of(cls, parent: int) -> Servers:
        """The children of the ``mas up`` with process id ``parent``.

        Raises:
            BackupError: a server does not run at this moment.

        """
        nats, redis, workers = 0, 0, []
        for pid, command in _children(parent):
            program = Path(command[0]).name.split()[0] if command and command[0] else ""
            if program.startswith("nats-server"):
                nats = pid
            elif program.startswith("redis-server"):
                redis = pid
            elif "broker_policy.worker" in command:
                workers.append(pid)
        if not nats or not redis:
            raise BackupError(
                f"{'nats-server' if not nats else 'redis-server'} is not running right now: wait until "
                "mas up has started it again, then repeat"
            )
        return cls(nats, redis, tuple(workers))


@contextlib.contextmanager
def frozen(servers: Servers, settled: Callable[[], None]) -> Iterator[None]:
    """Halt the servers for the length of the block.

    ``settled`` is called between the workers and the servers; it returns when nats-server has finished what
    the workers had sent.

    Raises:
        BackupError: a process did not halt.

    """
    pids = (*servers.workers, servers.nats, servers.redis)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *map(str, pids)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        _halt(*servers.workers)
        settled()
        _halt(servers.nats)
        _halt(servers.redis)
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait()


def _halt(*pids: int) -> None:
    try:
        halt(*pids)
    except ProcessLookupError as error:
        raise BackupError(f"process {error.filename} ended while the backup began: repeat it") from None
    except TimeoutError as error:
        raise BackupError(f"{error}: repeat the backup, or stop mas up first") from None


def _children(parent: int) -> Iterator[tuple[int, list[str]]]:
    if not Path("/proc/self/stat").exists():
        for line in _ps("-axo", "pid=,ppid=,command=").splitlines():
            pid, above, command = line.split(None, 2)
            if int(above) == parent:
                yield int(pid), command.split()
        return
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                raw = (process / "cmdline").read_bytes().split(b"\0")
                yield int(process.name), [word.decode(errors="replace") for word in raw]


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout
