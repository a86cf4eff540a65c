"""The connection over which a worker hears of direct state, read at most fifty times a second.

The server tells every worker of a change in the moment in which it answers the agent that made it. Nobody
waits for what a worker does with it, but each worker that wakes up takes the processor from the agent. So
after a change the kernel keeps what comes next for a moment, and wakes nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.subscription import Subscription

from mas_nats.errors import MasError, Unavailable
from mas_nats.resilient import ResilientClient

Connect = Callable[[], Awaitable[ResilientClient]]

_REST = 0.02
"""Seconds for which nothing is read after a change was heard."""
_WAKES = 1 << 16
"""Bytes that are not kept waiting."""
_PATIENCE = 1
"""Seconds in which the server answers whether everything was heard."""


class Hearing:
    """Subscriptions that rest after what they brought. ``connect`` opens their connection, for the first."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._nc: ResilientClient | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._catching_up = 0  # how many wait for it

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and opened again: something may have been missed."""
        return int(self._nc.stats["reconnects"]) if self._nc is not None else 0

    @property
    def away(self) -> bool:
        """Whether nothing is heard at the moment, as far as that is known."""
        return self._nc is not None and not self._nc.is_connected

    async def subscribe(self, subject: str, hear: Callable[[Any], Awaitable[None]]) -> Subscription:
        """Bring all of ``subject`` to ``hear``, from when this returns.

        Raises:
            Unavailable, IdentityRefused, ConfigurationError: no connection could be opened.
            nats.errors.Error: it was lost.

        """
        if self._nc is None:
            self._nc = await self._opened()

        async def heard(message: Any) -> None:
            await hear(message)
            self._rest()

        subscription = await self._nc.subscribe_directly(subject, heard)
        if not await self.catch_up():
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
            raise nats.errors.ConnectionReconnectingError
        return subscription

    async def catch_up(self) -> bool:
        """Hear what the server has sent until now; False where it does not answer: there may be more."""
        if self._nc is None:
            return True
        if self.away:
            return False
        self._listen()
        self._catching_up += 1
        try:
            await self._nc.flush(_PATIENCE)
        except (nats.errors.Error, OSError):
            return False
        finally:
            self._catching_up -= 1
        return not self.away

    async def close(self) -> None:
        """Hear nothing any more, until there is another subscription."""
        self._listen()
        nc, self._nc = self._nc, None
        if nc is not None:
            await nc.close()

    async def _opened(self) -> ResilientClient:
        try:
            return await self._connect()
        except (MasError, nats.errors.Error, OSError):
            raise
        except Exception as error:  # whatever it is, what this worker does otherwise goes on
            raise Unavailable(f"no connection for direct state: {error!r}") from error

    def _rest(self) -> None:
        if self._resting is None and not self._catching_up and self._nc is not None:
            self._nc.batch_reads(_WAKES)
            self._resting = asyncio.get_running_loop().call_later(_REST, self._listen)

    def _listen(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._nc is not None:
            self._nc.batch_reads(1)
