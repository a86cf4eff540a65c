"""Messages published right behind their record, without waiting until it is acknowledged.

The server stores such a message only where the one before it was stored last (``Nats-Expected-Last-Msg-Id``),
so no message comes into the log without its decision, and the acknowledgement of the message is the record's,
too. What it refuses goes out again once the record is known to be there: another worker had come between.

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

from broker_policy.commit.judged import Outgoing
from broker_policy.commit.writer import Prepared
from broker_policy.jetstream import Ack, JetStreamError, publish, publish_behind
from mas_nats.asking import AskingClient, Published
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

    def __init__(self, nc: AskingClient, single: Callable[[], bool]) -> None:
        self._nc = nc
        self._single = single
        self._in_vain = 0
        self._not_before = 0.0

    async def publish(self, prepared: Prepared, messages: Sequence[Outgoing]) -> list[Ack | Unacknowledged]:
        """Publish a record and ``messages`` behind it, in their order: what is known of each message then.

        The record is in the log where the first one was stored; nothing else is said of it. Empty where
        nothing was published.
        """
        if not messages or not self._single() or time.monotonic() < self._not_before:
            return []
        ids = [prepared.fields[headers.MSG_ID], *(message.dedup for message in messages)]
        record = Published(prepared.subject, prepared.body, prepared.fields)
        publishing = [
            self._publish(prepared.reference(position), message, ids[position], None if position else record)
            for position, message in enumerate(messages)
        ]
        # For a single one a task would be one more turn to wait for.
        found = list(await asyncio.gather(*publishing)) if len(publishing) > 1 else [await publishing[0]]
        self._learn(found[0])  # what becomes of the others says nothing more: each depends on the one before
        return found

    async def _publish(
        self, reference: str, message: Outgoing, last: str, record: Published | None
    ) -> Ack | Unacknowledged:
        fields = {**message.fields, headers.AUDIT: reference, headers.EXPECTED_LAST_MSG_ID: last}
        try:
            if record is None:
                return await publish(self._nc, message.subject, message.body, fields)
            return await publish_behind(self._nc, record, message.subject, message.body, fields)
        except JetStreamError:
            return Unacknowledged.NOT_STORED
        except (nats.errors.Error, OSError):
            return Unacknowledged.UNDER_WAY

    def _learn(self, first: Ack | Unacknowledged) -> None:
        refused = first is Unacknowledged.NOT_STORED
        self._in_vain = self._in_vain + 1 if refused else 0
        if self._in_vain >= _IN_VAIN:
            self._in_vain, self._not_before = 0, time.monotonic() + _LEFT_ALONE
