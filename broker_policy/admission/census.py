"""How many workers serve a namespace: they are asked, and each that is connected to it answers.

Only who can take calls can let messages through; and this costs nothing while nobody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from mas_nats.wire import subjects

log = logging.getLogger(__name__)

_ANSWER_WITHIN = 0.3
_OFTEN, _SELDOM = 1.0, 30.0
"""Seconds between two counts: while a worker enforces its share, and else. Who comes or goes says so, too."""


class Census:
    """Counts in one namespace.

    ``needed``: whether anything is limited; ``urgent``: whether shares are enforced.

    A worker that does not answer in time is not counted at once: of the last counts the highest holds, since
    with a count that is too low more is let through than may.
    """

    def __init__(
        self, nc: Client, worker: str, *, needed: Callable[[], bool], urgent: Callable[[], bool]
    ) -> None:
        self._nc = nc
        self._worker = worker
        self._needed = needed
        self._urgent = urgent
        self._counts: list[int] = []
        self._waited = _SELDOM  # seconds since the last count
        self._subscription: Any = None

    @property
    def workers(self) -> int:
        """Workers of this namespace, this one included."""
        return max(self._counts, default=1)

    async def start(self) -> None:
        """Answer from here on, and have everybody count anew."""

        async def answer(message: Any) -> None:
            if not message.reply:
                self._waited = _SELDOM  # somebody has come or gone
                return
            with contextlib.suppress(nats.errors.Error, OSError):
                await message.respond(self._worker.encode())

        self._subscription = await self._nc.subscribe(subjects.CENSUS, cb=answer)
        await self._nc.publish(subjects.CENSUS, b"")

    async def stop(self) -> None:
        """Be counted no more."""
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._subscription.unsubscribe()
                await self._nc.publish(subjects.CENSUS, b"")

    async def run(self) -> None:
        """Count for ever, whenever it matters."""
        while True:
            if self._needed() and (self._urgent() or self._waited >= _SELDOM):
                self._waited = 0.0
                try:
                    self._counts = [*self._counts[-2:], await self.count()]
                except (nats.errors.Error, OSError) as error:
                    log.debug("workers cannot be counted: %r", error)
            await asyncio.sleep(_OFTEN)
            self._waited += _OFTEN

    async def count(self) -> int:
        """Ask everybody, and wait a moment for the answers."""
        found = {self._worker}
        inbox = self._nc.new_inbox()

        async def heard(message: Any) -> None:
            found.add(message.data.decode(errors="replace"))

        subscription = await self._nc.subscribe(inbox, cb=heard)
        try:
            await self._nc.publish(subjects.CENSUS, b"", reply=inbox)
            await asyncio.sleep(_ANSWER_WITHIN)
        finally:
            await subscription.unsubscribe()
        return len(found)
