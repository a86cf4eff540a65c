"""One child process: output in a file, a readiness test, stopped by its pid, gone when we are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.halt import halt
from mas_nats.parent import dies_with_parent

_POLL = 0.02  # seconds
_ROTATE_BYTES = 16 << 20


class Process:
    """A program that can be started, stopped and started again.

    It is not bound to an event loop, so a test session may share one. Its output is appended to
    ``output``, which is moved to ``<output>.1`` at a start that finds it over 16 MB. ``logs`` names further
    files whose ends belong into the error when it dies. ``ailing`` says what is wrong with it while it runs,
    where only a new start helps, and "" otherwise.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        output: Path,
        ready: Callable[[], Awaitable[bool]],
        prepare: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
        logs: Sequence[Path] = (),
        ailing: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.output = output
        self._cwd = cwd
        self._ready = ready
        self._prepare = prepare
        self._env = env
        self._logs = (*logs, output)
        self._ailing = ailing
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            RuntimeError: it was never started.

        """
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: None while it runs, negative for a signal."""
        return None if self._child is None else self._child.poll()

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.exit_code
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"status {code}"

    async def start(self, timeout: float = 30.0) -> None:
        """Start it and return when it is ready.

        Raises:
            ServerDied: it ended, or was not ready within ``timeout`` seconds; it is gone then.

        """
        if self.running:
            raise RuntimeError(f"{self.name} is running already")
        self._spawn()
        try:
            await self._until_ready(timeout)
        except BaseException:
            self.kill()
            raise

    async def _until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not await self._ready():
            if not self.running:
                raise ServerDied(f"{self.name} ended with {self.ending} at its start.{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerDied(f"{self.name} was not ready within {timeout:g} s.{self.tail()}")
            await asyncio.sleep(_POLL)

    def _spawn(self) -> None:
        if self._prepare is not None:
            self._prepare()
        if self.output.exists() and self.output.stat().st_size > _ROTATE_BYTES:
            self.output.replace(self.output.with_name(f"{self.output.name}.1"))
        handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env=None if self._env is None else dict(self._env),
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                umask=0o077,
                # A group of its own: Ctrl-C reaches us, and we stop the children in order.
                process_group=0,
                preexec_fn=dies_with_parent(),  # noqa: PLW1509 - nothing in it takes a lock
            )
        finally:
            os.close(handle)

    async def wait(self) -> int:
        """Return its exit code when it has ended."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        while (code := self._child.poll()) is None:
            await _ended(self._child.pid)
        return code

    async def ailing(self) -> str:
        """What is wrong with it that only a new start mends, "" when nothing is."""
        return await self._ailing() if self._ailing is not None and self.running else ""

    async def stop(self, timeout: float = 5.0) -> None:
        """End it with SIGTERM, and with SIGKILL when it is still there after ``timeout`` seconds."""
        if not self.running:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), timeout)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End it with SIGKILL, now."""
        if self._child is not None:
            self._signal(signal.SIGKILL)
            self._child.wait()

    def hang_up(self) -> None:
        """Tell it to read its configuration again (SIGHUP)."""
        self._signal(signal.SIGHUP)

    def pause(self) -> None:
        """Halt it (SIGSTOP): its connections stay open and nothing is answered.

        Raises:
            ProcessLookupError: it has ended.
            TimeoutError: it did not halt.

        """
        if self._child is not None:
            halt(self._child.pid)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send_signal(number)

    def tail(self, lines: int = 15) -> str:
        """The last lines of what it logged, with the file's name, to end an error text with."""
        out = []
        for path in self._logs:
            with contextlib.suppress(OSError):
                text = path.read_text(errors="replace").splitlines()[-lines:]
                if text:
                    out.append("\n".join((f"\n--- {path}", *text)))
        return "".join(out)


async def _ended(pid: int) -> None:
    """Return when a child that nobody has reaped has ended; sooner where the system does not tell."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):  # only Linux has it, and a process has only so many handles
        await asyncio.sleep(_POLL)
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(handle, end)
    try:
        await ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)
