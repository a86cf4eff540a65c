"""The processes that ``mas up`` started, to end them at bad moments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def children(parent: int) -> dict[str, int]:
    """The processes of a running ``mas up`` by name: w1, w2, signer, nats-server, redis-server.

    With three nodes nats-1, nats-2 and nats-3.
    """
    found: dict[str, int] = {}
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[_name([part.decode(errors="replace") for part in command])] = int(pid)
    return found


def kill(parent: int, name: str) -> int:
    """``kill -9`` the process ``name``, waiting until there is one; its pid."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid = children(parent).get(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.02)
    raise AssertionError(f"{name} does not run")


def _name(command: list[str]) -> str:
    if "broker_policy.worker" in command:
        return command[command.index("--name") + 1]
    if "broker_policy.audit.signer" in command:
        return "signer"
    program = Path(command[0]).name
    if program == "nats-server" and (node := Path(command[-2]).parent.name).startswith("nats-"):
        return node
    return program.split()[0] if program else "?"
