"""Looks at the namespace's agents, shared by all pages: rates are the difference between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import nats.errors
from nats.aio.client import Client

from broker_policy.ending import end
from broker_policy.jetstream import JetStreamError
from broker_policy.overview import Look, Row, look, rows

_FRESH = 1.0
"""Seconds for which a look serves: however many pages are open, nobody is asked more often."""
_EVERY = 5.0
"""Seconds between looks while nobody asks, so that a page that is opened need not wait for one."""
_OLD = 10.0
"""Seconds after which the look before is too old for a rate of now."""


class Looks:
    """The last two looks. ``clock`` is in seconds and never goes back."""

    def __init__(self, nc: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._nc = nc
        self._clock = clock
        self._before: Look | None = None
        self._now: Look | None = None
        self._taken = 0.0
        self._looking: asyncio.Task[Look] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Looks]:
        """Look now, and now and then in the background.

        Raises: as ``current``.
        """
        await self.current()
        following = asyncio.create_task(self._follow())
        try:
            yield self
        finally:
            await end([following])

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            with contextlib.suppress(JetStreamError, nats.errors.Error, OSError):  # who asks is told
                await self._look()

    async def current(self) -> Look:
        """What is there now, at most a second old; at the first time it looks once.

        Raises:
            JetStreamError, nats.errors.Error: a stream did not answer.

        """
        now = self._now
        if now is None:
            return await self._look()
        if self._clock() - self._taken < _FRESH:
            return now
        if self._clock() - self._taken < _OLD:
            self._start()  # the page need not wait for it: it asks again soon
            return now
        return await self._look()

    async def rows(self) -> list[Row]:
        """Every agent, the busiest first; no rates before the second look. Errors as ``current``."""
        now = await self.current()
        return rows(self._before or now, now) if self._before else _without_rates(now)

    async def _look(self) -> Look:
        return await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[Look]:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._take())
            self._looking.add_done_callback(_seen)
        return self._looking

    async def _take(self) -> Look:
        try:
            found = await look(self._nc)
        except BaseException:
            self._now = None  # nothing old is shown as if it were of now
            raise
        stale = self._now is None or self._clock() - self._taken > _OLD
        self._before = None if stale else self._now
        self._now, self._taken = found, self._clock()
        return found


def _without_rates(now: Look) -> list[Row]:
    return rows(Look(now.at, {}, {}, now.instances, {}), now)


def _seen(task: asyncio.Task[Look]) -> None:
    if not task.cancelled():
        task.exception()  # who waited has it; without anybody it is asked again
