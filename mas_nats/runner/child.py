"""One process: told what to do on its standard input, heard on two pipes, gone with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from mas_nats.parent import dies_with_parent
from mas_nats.runner import lines
from mas_nats.runner.guard import Guard

_LAST_WORDS = 2.0
"""Seconds for what was written before the end; only a process that left the group can keep a pipe open."""


class Child:
    """A Python module run as ``python -m module name``.

    ``output`` gets each line that it or what it starts prints. ``told`` gets each line that the module writes
    to the descriptor in ``sys.argv[2]``, which is for the runner. ``order`` is on its standard input.
    """

    def __init__(
        self,
        module: str,
        name: str,
        order: bytes,
        *,
        folder: Path,
        guard: Guard,
        output: Callable[[str], None],
        told: Callable[[str], None],
    ) -> None:
        self._module = module
        self._name = name
        self._order = order
        self._folder = folder
        self._guard = guard
        self._output = output
        self._told = told
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, begun: Callable[[int], None] = lambda _: None) -> int:
        """Start it and return its exit status when it has ended, negative for a signal.

        ``begun`` is called with its process id. Whatever it left behind in its process group is killed, also
        when this is cancelled.
        """
        output, output_end = os.pipe()
        told, told_end = os.pipe()
        hearing: list[asyncio.Task[None]] = []
        try:
            try:
                self._process = process = await self._start(output_end, told_end)
            finally:
                os.close(output_end)
                os.close(told_end)
                hearing = [
                    asyncio.create_task(lines.read(output, self._output)),
                    asyncio.create_task(lines.read(told, self._told)),
                ]
            self._guard.add(process.pid)
            try:
                begun(process.pid)
                status = await process.wait()
            finally:
                self.kill()
                await process.wait()
                self._guard.remove(process.pid)
            await asyncio.wait(hearing, timeout=_LAST_WORDS)
            return status
        finally:
            for task in hearing:
                task.cancel()
            await asyncio.gather(*hearing, return_exceptions=True)

    async def _start(self, output: int, told: int) -> asyncio.subprocess.Process:
        with (
            tempfile.TemporaryFile() as order
        ):  # not an argument, not in the environment: others may read those
            order.write(self._order)
            order.seek(0)
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a file of the current folder must not take the place of a module of ours
                "-m",
                "mas_nats.starting",
                self._module,
                self._name,
                str(told),
                stdin=order,
                stdout=output,
                stderr=output,
                pass_fds=(told,),
                cwd=self._folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                # A group of its own: Ctrl-C reaches the runner, which lets handlers finish.
                process_group=0,
                preexec_fn=dies_with_parent(),
            )

    def stop(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all of its group (SIGKILL)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
