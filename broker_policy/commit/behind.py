"""Messages published right behind their record, without waiting until it is acknowledged.

The server stores such a message only where the one before it was stored last (``Nats-Expected-Last-Msg-Id``),
so no message comes into the log without its decision. What it refuses goes out again after the record's
acknowledgement: another worker had come between.

Only where a single node keeps the log. With copies each node checks the condition for itself, against an id
that it does not know after it has caught up or started anew (read in the source of nats-server 2.15.1), and
would leave out what the others have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from enum import Enum

import nats.errors
from nats.aio.client import Client

from broker_policy.commit.judged import Outgoing
from broker_policy.commit.writer import Prepared
from broker_policy.jetstream import Ack, JetStreamError, publish
from mas_nats.wire import headers

_IN_VAIN = 3
"""Records in a row behind which somebody else came, after which it is left alone for some time."""
_LEFT_ALONE = 10.0
"""Seconds."""


class Unacknowledged(Enum):
    """What is known of a message that the stream has not acknowledged."""

    NOT_STORED = 1
    MAYBE_STORED = 2  # or never
    UNDER_WAY = 3  # it may be stored, or yet be


class Behind:
    """Publishes messages behind their record, as long as that succeeds.

    ``single`` says whether it is certain that one node keeps the log.
    """

    def __init__(self, nc: Client, single: Callable[[], bool]) -> None:
        self._nc = nc
        self._single = single
        self._in_vain = 0
        self._not_before = 0.0

    def publish(
        self, prepared: Prepared, messages: Sequence[Outgoing]
    ) -> list[asyncio.Task[Ack | Unacknowledged]]:
        """Publish ``messages`` in their order, once the caller has published the record and waits."""
        if not self._single() or time.monotonic() < self._not_before:
            return []
        ids = [prepared.fields[headers.MSG_ID], *(message.dedup for message in messages)]
        tasks = [
            asyncio.create_task(self._publish(prepared.reference(position), message, ids[position]))
            for position, message in enumerate(messages)
        ]
        if tasks:  # what becomes of the others says nothing more: each depends on the one before
            tasks[0].add_done_callback(self._learn)
        return tasks

    async def _publish(self, reference: str, message: Outgoing, last: str) -> Ack | Unacknowledged:
        fields = {**message.fields, headers.AUDIT: reference, headers.EXPECTED_LAST_MSG_ID: last}
        try:
            return await publish(self._nc, message.subject, message.body, fields)
        except JetStreamError:
            return Unacknowledged.NOT_STORED
        except (nats.errors.Error, OSError):
            return Unacknowledged.UNDER_WAY

    def _learn(self, first: asyncio.Task[Ack | Unacknowledged]) -> None:
        if first.cancelled() or first.exception() is not None:
            return
        refused = first.result() is Unacknowledged.NOT_STORED
        self._in_vain = self._in_vain + 1 if refused else 0
        if self._in_vain >= _IN_VAIN:
            self._in_vain, self._not_before = 0, time.monotonic() + _LEFT_ALONE
