"""A lease: which worker of several does what one shall do. It saves work; nothing is wrong when two do it."""

from __future__ import annotations

import contextlib

import nats.errors
from nats.aio.client import Client

from broker_policy.jetstream import JetStreamError, get_last, publish
from mas_nats.wire import headers, subjects
from mas_nats.wire.stored import WRONG_LAST_SEQUENCE

RENEW_EVERY = 1.5
"""Seconds between two renewals by who has it."""
ASK_EVERY = 2.0
"""Seconds after which who has it not asks again."""
_UNANSWERED = (nats.errors.Error, JetStreamError, OSError)


class Lease:
    """The lease ``name`` of one namespace, as the worker ``holder`` wants it.

    It ends by itself when it is not renewed (the age of the bucket).
    """

    def __init__(self, nc: Client, name: str, holder: str) -> None:
        self._nc = nc
        self._subject = subjects.kv_key(subjects.LEASES_BUCKET, name)
        self._holder = holder.encode()
        self._sequence = 0
        self._unanswered = False  # a write may be stored without our knowing where

    async def hold(self) -> bool:
        """Take the lease, or renew it; whether this worker has it now."""
        for _ in range(2):
            if not self._sequence and not await self._free():  # most ask in vain: a look is cheaper
                return False
            try:
                self._sequence = await self._write(self._holder)
            except JetStreamError as error:
                if error.code not in WRONG_LAST_SEQUENCE:
                    return False
                self._sequence = 0
            except _UNANSWERED:
                return False
            else:
                return True
        return False

    async def give_up(self) -> None:
        """Let another worker take it at once, also where ``hold`` was cancelled before it had its answer."""
        if self._unanswered:
            await self._free()
        if self._sequence:
            with contextlib.suppress(*_UNANSWERED):
                await self._write(b"")
            self._sequence = 0

    async def _free(self) -> bool:
        """Whether nobody else has it; then the next write expects what is there."""
        stream = subjects.kv_stream(subjects.LEASES_BUCKET)
        try:
            there = await get_last(self._nc, stream, self._subject, timeout=1)
        except _UNANSWERED:
            return False
        self._sequence = there.sequence if there is not None and there.data in (b"", self._holder) else 0
        return there is None or self._sequence > 0

    async def _write(self, holder: bytes) -> int:
        condition = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(self._sequence)}
        self._unanswered = True
        ack = await publish(self._nc, self._subject, holder, condition, timeout=1)
        self._unanswered = False
        return ack.sequence
