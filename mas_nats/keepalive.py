"""Tells the server that long handlers are still at work, from a thread of its own.

A handler that blocks the event loop blocks everything on that loop, its connection too; the server would
give its message to somebody else while it still runs (fault 16 of the ancestor). So the sign of life comes
from a thread with a second connection, opened when the first handler runs longer than a third of the ack
wait. Code that holds the interpreter's lock for so long (a C extension) still stops it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from mas_nats.errors import MasError
from mas_nats.transport import Connection

logger = logging.getLogger("mas_nats")

IN_PROGRESS = b"+WPI"


class KeepAlive:
    """Signs of life for the deliveries that are being handled, three in each ``ack_wait`` of the moment."""

    def __init__(
        self, connection: Callable[[str], Connection], *, name: str, ack_wait: Callable[[], float]
    ) -> None:
        self._ack_wait = ack_wait
        self._connection = connection
        self._name = name
        self._signed: dict[str, float] = {}  # ack subject -> when the server heard of it last (monotonic)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def interval(self) -> float:
        """Seconds between two signs."""
        return self._ack_wait() / 3

    def add(self, ack_subject: str) -> None:
        """A handler starts."""
        self._signed[ack_subject] = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"{self._name}-keepalive", daemon=True)
            self._thread.start()

    def remove(self, ack_subject: str) -> None:
        """A handler has ended."""
        self._signed.pop(ack_subject, None)

    async def stop(self) -> None:
        """End the thread and its connection."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        asyncio.run(self._signs())

    async def _signs(self) -> None:
        connection: Connection | None = None
        while not self._stopping.is_set():
            await asyncio.sleep(min(0.5, self.interval / 4))
            now = time.monotonic()
            latest = now - self.interval
            due = [subject for subject, when in tuple(self._signed.items()) if when <= latest]
            if not due:
                continue
            try:
                connection = connection or await self._connect()
                for subject in due:
                    await connection.publish(subject, IN_PROGRESS)
            except MasError as error:
                logger.warning("%s: no sign of life for long handlers: %s", self._name, error)
                continue
            if await connection.flush(self.interval):
                for subject in due:
                    if subject in self._signed:
                        self._signed[subject] = now
        if connection is not None:
            await connection.close()

    async def _connect(self) -> Connection:
        connection = self._connection(f"{self._name} keep-alive")
        await connection.open(self.interval)
        return connection
