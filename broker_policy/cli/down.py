"""``mas down``: the end of ``mas up``."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from broker_policy.cli.app import Folder, Json, Output, command
from broker_policy.embedded import lock
from broker_policy.embedded.errors import NotRunning
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout

_STOPPING = 30.0
"""Seconds after which ``mas down`` kills what does not stop."""
_EXITING = 2.0
_POLL = 0.05


@command("down", example="mas down --folder .mas")
def down(*, folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """Stop what `mas up` started in the folder, and wait until it is gone.

    Exits with 3 when nothing runs there.
    """
    out = Output(json=json)
    layout = Layout(folder.absolute())
    holder = lock.holder_of(layout.lock)
    if holder is None:
        raise NotRunning(f"nothing runs in {layout.root}")
    os.kill(holder.pid, signal.SIGTERM)
    killed = False
    deadline = time.monotonic() + _STOPPING
    while (now := lock.holder_of(layout.lock)) is not None and now.pid == holder.pid:
        if time.monotonic() > deadline and not killed:
            os.kill(holder.pid, signal.SIGKILL)  # its children end with it
            killed = True
        time.sleep(_POLL)
    _wait_gone(holder.pid)
    text = f"process {holder.pid} {'had to be killed' if killed else 'stopped'}"
    out.result({"stopped": True, "pid": holder.pid, "killed": killed}, text)


def _wait_gone(pid: int) -> None:
    """Wait for a process that has let go of its lock; not for long, since nobody may be there to reap it."""
    deadline = time.monotonic() + _EXITING
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(_POLL)
