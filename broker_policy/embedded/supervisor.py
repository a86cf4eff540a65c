"""Keeps processes running: started in groups, started again when they end, stopped in reverse order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from broker_policy.embedded.errors import ServerDied
from broker_policy.embedded.process import Process
from broker_policy.ending import end


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a process that ended is started again."""

    first: float = 0.2  # seconds; doubles each time
    most: float = 10.0  # seconds
    look: float = 2.0  # seconds between two looks at whether it is well
    healthy: float = 30.0  # seconds after which a run counts as good, and the next wait is the first again


class Supervisor:
    """Watches the processes it has started.

    ``say`` gets a line whenever something happens that a person may want to know.
    """

    def __init__(self, say: Callable[[str], None], *, backoff: Backoff | None = None) -> None:
        self._say = say
        self._backoff = backoff or Backoff()
        self._groups: list[list[Process]] = []
        self._watches: list[asyncio.Task[None]] = []

    async def start(
        self,
        *processes: Process,
        timeout: float = 30.0,
        restarted: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Start a group at once and return when each is ready; from then on they are watched.

        ``restarted`` is awaited whenever one of them was started again; while it raises, the process counts
        as not ready and is started once more. It is cancelled when the process ends before.

        Raises:
            ServerDied: one did not get ready. The others run on until ``stop``.

        """
        group: list[Process] = []
        self._groups.append(group)
        results = await asyncio.gather(
            *(self._start(process, group, timeout, restarted) for process in processes),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _start(
        self,
        process: Process,
        group: list[Process],
        timeout: float,
        restarted: Callable[[], Awaitable[None]] | None,
    ) -> None:
        begun = time.monotonic()
        await process.start(timeout)
        group.append(process)
        self._say(f"{process.name} ready after {time.monotonic() - begun:.2f} s (process {process.pid})")
        self._watches.append(asyncio.create_task(self._watch(process, restarted)))

    async def _watch(self, process: Process, restarted: Callable[[], Awaitable[None]] | None) -> None:
        delay = self._backoff.first
        started = time.monotonic()
        while True:
            await self._until_ended(process)
            if time.monotonic() - started > self._backoff.healthy:
                delay = self._backoff.first
            self._say(f"{process.name} ended with {process.ending}, starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._backoff.most)
            started = time.monotonic()
            try:
                await process.start()
                if restarted is not None:
                    await self._while_it_runs(process, restarted())
            except Exception as error:  # noqa: BLE001 - whatever it is, the next try is all that can be done
                self._say(f"{process.name}: {type(error).__name__}: {error}")
                process.kill()
            else:
                self._say(f"{process.name} ready again (process {process.pid})")

    async def _while_it_runs(self, process: Process, work: Awaitable[None]) -> None:
        """Await ``work``, which may wait for the process for ever.

        Raises:
            ServerDied: the process ended meanwhile.

        """
        working, ended = asyncio.ensure_future(work), asyncio.create_task(process.wait())
        try:
            await asyncio.wait((working, ended), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ServerDied(f"it ended with {process.ending} before all was as it was")
            await working
        finally:
            await end((working, ended))

    async def _until_ended(self, process: Process) -> None:
        """Return when it has ended; one that ails twice in a row is ended."""
        before = ""
        while True:
            try:
                await asyncio.wait_for(process.wait(), self._backoff.look)
            except TimeoutError:
                trouble = await process.ailing()
                if trouble and before:
                    self._say(f"{process.name} goes on only after a new start ({trouble}), ending it")
                    process.kill()
                before = trouble
            else:
                return

    def attend(self, running: Coroutine[Any, Any, None]) -> None:
        """Run this too, until ``stop``."""
        self._watches.append(asyncio.create_task(running))

    async def stop(self, timeout: float = 5.0) -> None:
        """Stop everything, the last group first; a group gets ``timeout`` seconds before it is killed."""
        await end(self._watches)
        self._watches.clear()
        while self._groups:
            group = self._groups.pop()
            await asyncio.gather(*(process.stop(timeout) for process in group))
            for process in group:
                self._say(f"{process.name} stopped")
