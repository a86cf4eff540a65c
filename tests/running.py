"""``mas run`` as a process: what it says as JSON lines, read as it comes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system import System, mas, new_namespace

PATIENCE = 60.0
"""Seconds for whatever must happen."""

Event = dict[str, Any]


def project(system: System, folder: Path, manifest: str, **files: str) -> Path:
    """A folder with a manifest of a namespace of its own, applied, and with modules; the manifest's path."""
    path, namespace = folder / "mas.yaml", new_namespace()
    path.write_text(f"namespace: {namespace}\n{manifest}")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    system.namespaces.add(namespace)
    mas("apply", "--folder", str(system.layout.root), str(path))
    return path


class Run:
    """A runner. ``events`` are all that were read so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[Event] = []
        self._coming: queue.Queue[Event | None] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(json.loads(line))
        self._coming.put(None)

    def wait(self, wanted: Callable[[Event], bool], what: str) -> Event:
        """The next event that is ``wanted``."""
        deadline = time.monotonic() + PATIENCE
        while (event := self._coming.get(timeout=max(0.1, deadline - time.monotonic()))) is not None:
            self.events.append(event)
            if wanted(event):
                return event
        raise AssertionError(f"the runner ended before {what}: {self.events}")

    def wait_for(self, kind: str, instance: str = "") -> Event:
        """The next event of a kind, of an instance."""
        return self.wait(
            lambda each: each.get("event") == kind and instance in ("", each.get("instance")),
            f"{kind} {instance}",
        )

    def wait_line(self, text: str, instance: str = "") -> Event:
        """The next line with ``text`` in it."""
        return self.wait(
            lambda each: (
                each.get("event") == "output" and text in each["line"] and instance in ("", each["instance"])
            ),
            f"the line {text!r}",
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit status, when it has ended."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit status, of an end by itself."""
        status = self.process.wait(PATIENCE)
        while (event := self._coming.get(timeout=PATIENCE)) is not None:
            self.events.append(event)
        return status

    def close(self) -> None:
        """Read what is left."""
        self._reading.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def of(self, kind: str) -> list[Event]:
        """The events of a kind."""
        return [each for each in self.events if each.get("event") == kind]

    def lines(self, agent: str = "") -> list[str]:
        """What an agent, or all, have printed."""
        return [each["line"] for each in self.of("output") if each["instance"].startswith(agent)]


@contextmanager
def running(folder: Path, *arguments: str, module: str = "broker_policy.cli run") -> Iterator[Run]:
    """``mas run --json`` with these arguments; stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module.split(), "--json", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAS_")},
    )
    run = Run(process)
    try:
        yield run
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        run.close()


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_gone(*pids: int) -> None:
    """Wait until none of them runs."""
    deadline = time.monotonic() + PATIENCE
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.02)
