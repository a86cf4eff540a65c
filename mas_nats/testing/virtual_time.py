"""Time that stands still while anything can run, and jumps to the next timer when nothing can.

A retry in a minute is then a retry at once, in the order it would have had. It replaces the clock of the
running asyncio loop: ``asyncio.sleep``, timeouts and ``call_later`` of the code under test follow it too.
While a socket is open in the loop, or a thread works for it, time passes as it really does.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any


class VirtualTime:
    """The clock of one event loop. Several brokers in one loop share it."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._inner: Any = loop._selector  # noqa: SLF001 - asyncio has no public way to the waiting itself
        self._now: float = loop.time()
        self._users = 0
        self._threads = 0

    @classmethod
    def start(cls) -> VirtualTime:
        """Replace the running loop's clock, or join what did so before. Ends with ``stop``.

        Raises:
            RuntimeError: the loop is not asyncio's own.

        """
        loop: Any = asyncio.get_running_loop()
        selector = getattr(loop, "_selector", None)
        if isinstance(selector, _Jumping):
            running = selector.clock
        elif hasattr(selector, "get_map"):
            running = cls(loop)
            loop._selector = _Jumping(running, selector)  # noqa: SLF001
            loop.time = running.time
            loop.run_in_executor = running.run_in_executor
        else:
            raise RuntimeError(
                f"virtual time needs asyncio's own selector event loop, not that of {type(loop).__module__}: "
                "run the test on asyncio, or use MemoryBroker(..., virtual_time=False)"
            )
        running._users += 1
        return running

    def stop(self) -> None:
        """Let time pass again as it really does, from where it is now."""
        self._users -= 1
        if self._users:
            return
        ahead = self._now - time.monotonic()
        self._loop._selector = self._inner  # noqa: SLF001
        self._loop.time = lambda: time.monotonic() + ahead
        del self._loop.run_in_executor

    def time(self) -> float:
        """What ``loop.time()`` says."""
        return self._now

    def select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What the loop waits with: for ``timeout`` seconds, or None until something happens."""
        if timeout is not None and timeout <= 0:
            return self._select(0)
        if self._threads or len(self._inner.get_map() or ()) > 1:  # more than the loop's own pipe
            started = time.monotonic()
            events = self._select(timeout)
            self._now += time.monotonic() - started
            return events
        events = self._select(0)
        if events:
            return events
        if timeout is None:
            return self._select(None)
        self._now += timeout
        return events

    def _select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = self._inner.select(timeout)
        return events

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> asyncio.Future[Any]:
        """The loop's own, and time passes as it really does until the thread is done."""
        work: asyncio.Future[Any] = type(self._loop).run_in_executor(
            self._loop, executor, function, *arguments
        )
        self._threads += 1
        work.add_done_callback(self._thread_ended)
        return work

    def _thread_ended(self, _: asyncio.Future[Any]) -> None:
        self._threads -= 1


class _Jumping:
    """The loop's selector, but for the waiting."""

    def __init__(self, clock: VirtualTime, inner: Any) -> None:
        self.clock = clock
        self._inner = inner

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self.clock.select(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
