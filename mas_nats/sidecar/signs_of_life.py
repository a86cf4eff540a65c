"""What a caller hears while the application is silent: that its call is being run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from mas_nats.message import ReplyWriter
from mas_nats.sidecar.carriage import Part

_FIRST_SIGN = 1.0
"""Seconds until the caller hears that its call is being run, where there is no answer yet."""
_ALIVE = Part(alive=True).payload()

T = TypeVar("T")


class Broken(Exception):
    """An answer broke off. Holds nothing of its content."""


class SignsOfLife:
    """Lets the caller know, while the application is silent, that its call is being run."""

    def __init__(self, out: ReplyWriter, every: float, leaving: asyncio.Event) -> None:
        self._out = out
        self._leaving = leaving
        self._every = every
        self._next = min(_FIRST_SIGN, every)
        self.said = False

    async def during(self, work: Awaitable[T]) -> T:
        """Wait for ``work``.

        Raises:
            Broken: the sidecar stops.

        """
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            while not task.done():
                first = asyncio.FIRST_COMPLETED
                done, _ = await asyncio.wait({task, leaving}, timeout=self._next, return_when=first)
                if leaving in done and task not in done:
                    raise Broken("the sidecar stops")
                if not done:
                    self._next, self.said = self._every, True
                    await self._out.write(_ALIVE)
            return task.result()
        finally:
            leaving.cancel()
            task.cancel()
            await asyncio.gather(leaving, task, return_exceptions=True)

    async def through(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Go through ``parts``."""
        while (part := await self.during(following(parts))) is not None:
            yield part


async def following(parts: AsyncIterator[bytes]) -> bytes | None:
    """The next part; None after the last."""
    return await anext(parts, None)
