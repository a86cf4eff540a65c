"""Keeps one instance running: starts its process again when it crashes, later each time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from enum import StrEnum
from typing import Any

from mas_nats.runner.backoff import Backoff
from mas_nats.runner.child import Child
from mas_nats.runner.guard import Guard
from mas_nats.runner.plan import Instance
from mas_nats.runner.printing import Printer


class End(StrEnum):
    """How it ended for good."""

    STOPPED = "stopped"  # as it was asked to
    FINISHED = "finished"  # by itself, with status 0
    FAILED = "failed"  # by itself, and it is not to be started again
    KILLED = "killed"  # it did not stop in time


class Keeper:
    """One instance. ``once``: it is not started again, however it ends."""

    def __init__(
        self, instance: Instance, printer: Printer, guard: Guard, *, backoff: Backoff, once: bool = False
    ) -> None:
        self.instance = instance
        self._guard = guard
        self._printer = printer
        self._backoff = backoff
        self._once = once
        self._stopping = asyncio.Event()
        self._killed = False
        self._ready_since: float | None = None
        self._began = 0.0
        self._child = self._new()

    async def keep(self) -> End:
        """Run it until it has finished or was stopped."""
        wait: float | None = None
        while not self._stopping.is_set():
            self._ready_since, self._began = None, time.monotonic()
            status = await self._child.run(self._started)
            if self._killed:
                return End.KILLED
            if self._stopping.is_set():
                break
            if status == 0:
                self._event("finished", "has finished")
                return End.FINISHED
            ran = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
            if self._once:
                self._event("failed", f"ended with {_words(status)}", **_ending(status))
                return End.FAILED
            wait = self._backoff.after(wait, ran)
            text = f"ended with {_words(status)}; it is started again in {wait:g} s"
            self._event("crashed", text, **_ending(status), restart_in=wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
            self._child = self._new()
        self._event("stopped", "stopped")
        return End.STOPPED

    def stop(self) -> None:
        """Let its handlers finish, then let it end; it is not started again."""
        self._stopping.set()
        self._child.stop()

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        self._stopping.set()
        self._event("killed", "did not stop in time and is killed")
        self._child.kill()

    def _new(self) -> Child:
        return Child(
            "mas_nats.runner.instance",
            self.instance.name,
            self.instance.order.model_dump_json().encode(),
            folder=self.instance.order.folder,
            guard=self._guard,
            output=lambda line: self._printer.line(self.instance.name, line),
            told=self._told,
        )

    def _started(self, pid: int) -> None:
        self._event("started", f"started (process {pid})", pid=pid)
        if self._stopping.is_set():  # meanwhile
            self._child.stop()

    def _told(self, line: str) -> None:
        what = json.loads(line)
        if "ready" in what:
            self._ready_since = time.monotonic()
            self._event("ready", f"is ready, after {self._ready_since - self._began:.1f} s")
        else:
            self._event("waiting", f"waits: {what['waiting']}", reason=what["waiting"])

    def _event(self, kind: str, text: str, **facts: Any) -> None:
        self._printer.event(kind, text, instance=self.instance.name, **facts)


def _ending(status: int) -> dict[str, Any]:
    return {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}


def _words(status: int) -> str:
    return " ".join(f"{name} {value}" for name, value in _ending(status).items())
