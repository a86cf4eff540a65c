"""How much the log holds, and whether it may grow: the byte limit of the log is kept here, not by the server.

A byte limit on the stream would make nats-server 2.15.1 count a batch's messages for an inbox wrongly, and
store a part of a batch that does not fit, without an answer (ADR 11).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client

from broker_policy.bytes_held import ENVELOPE
from broker_policy.commit.disk_room import DiskRoom
from broker_policy.commit.inbox_bytes import InboxBytes
from broker_policy.jetstream import JetStreamError, api
from mas_nats.wire import subjects

LOOK_EVERY = 0.25
"""Seconds between two looks while something is written. By what other workers write meanwhile, the log can
exceed its limit."""
BESIDE_MESSAGES = 16
"""One part of so many of the limit is had beyond it by decisions without a message: on replies, states and
refusals. They leave the log by themselves, and messages that nobody reads must not keep them out."""


class LogRoom:
    """The room in the log of one namespace, for all writers of one worker.

    ``limit`` says how many bytes the log may have, ``messages`` how many messages each inbox; None: not known
    at the moment. ``disk`` is the storage below it. ``workers``: how many there are.
    """

    def __init__(
        self,
        nc: Client,
        limit: Callable[[], int | None],
        disk: DiskRoom | None = None,
        *,
        messages: Callable[[], int | None] = lambda: None,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._nc = nc
        self._limit = limit
        self._messages = messages
        self._disk = disk or DiskRoom()
        self.inboxes = InboxBytes(nc, workers)
        self._bytes = 0  # at the last look
        self._since = 0  # written by this worker since then
        self.copies = 0
        """How many nodes keep the log; 0: not known yet."""
        self._written = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the log has reached its limit, or the storage below it its own, as far as is known."""
        return self._disk.full or self._reached(1.0)

    @property
    def exhausted(self) -> bool:
        """Whether there is no room either for decisions without a message."""
        return self._disk.full or self._reached(1.0 + 1.0 / BESIDE_MESSAGES)

    @property
    def scarce(self) -> bool:
        """Whether so much is taken that it matters by whom."""
        return self._reached(0.5)

    def _reached(self, part: float) -> bool:
        limit = self._limit()
        return limit is not None and self._bytes + self._since >= part * limit

    def written(self, size: int, count: int = 1) -> None:
        """``count`` bodies of ``size`` bytes together were stored."""
        self._since += size + count * ENVELOPE
        self._written.set()

    async def look(self) -> None:
        """Ask how large the log is, and where room is scarce who holds it.

        Raises:
            JetStreamError, nats.errors.Error: there is no log, or no answer.

        """
        before = self._since
        info = await api(self._nc, f"STREAM.INFO.{subjects.INBOX_STREAM}", {})
        self._bytes = int(info["state"]["bytes"])
        self.copies = int(info["config"]["num_replicas"])
        self._since -= before
        if (limit := self._limit()) is not None:
            messages = self._messages()
            if messages is not None and messages >= int(info["config"]["max_msgs_per_subject"]):
                messages = None  # more exactly kept by the server
            await self.inboxes.look(self._bytes, limit, messages)

    async def follow(self) -> None:
        """Look while this worker writes, or while the log or an inbox is full, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if not (self.full or self.inboxes.over or self.inboxes.full):
                await self._written.wait()
            self._written.clear()
            with contextlib.suppress(nats.errors.Error, JetStreamError, OSError):
                await self.look()
