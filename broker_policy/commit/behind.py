"""A message published right behind its record, without waiting until that is acknowledged (ADR 41).

The server stores such a message only where its record was stored last (``Nats-Expected-Last-Msg-Id``), so it
does not come into the log without its decision, and its acknowledgement is the record's, too. What is
refused goes out again once the record is known to be there: another worker had come between.

One message at a time: a second one could only say that it follows the first, and where that is a repetition
of what somebody else had stored, the record may be missing.

Only where a single node keeps the log. With copies each node checks the condition for itself, against an id
that it does not know after it has caught up or started anew (read in the source of nats-server 2.15.1), and
would leave out what the others have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

import nats.errors

from broker_policy.commit.judged import Outgoing
from broker_policy.commit.writer import Prepared
from broker_policy.jetstream import Ack, JetStreamError, publish_behind
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
    """Publishes a message behind its record, as long as that succeeds.

    ``single`` says whether it is certain that one node keeps the log.
    """

    def __init__(self, nc: AskingClient, single: Callable[[], bool]) -> None:
        self._nc = nc
        self._single = single
        self._in_vain = 0
        self._not_before = 0.0

    async def publish(self, prepared: Prepared, message: Outgoing) -> Ack | Unacknowledged | None:
        """Publish a record and ``message`` behind it: what is known of the message then.

        Where it was stored just now the record lies right before it; else nothing is known of the record.
        None where nothing was published.
        """
        if not self._single() or time.monotonic() < self._not_before:
            return None
        found = await self._publish(prepared, message)
        self._in_vain = self._in_vain + 1 if found is Unacknowledged.NOT_STORED else 0
        if self._in_vain >= _IN_VAIN:
            self._in_vain, self._not_before = 0, time.monotonic() + _LEFT_ALONE
        return found

    async def _publish(self, prepared: Prepared, message: Outgoing) -> Ack | Unacknowledged:
        record = Published(prepared.subject, prepared.body, prepared.fields)
        fields = {
            **message.fields,
            headers.AUDIT: prepared.reference(0),
            headers.EXPECTED_LAST_MSG_ID: prepared.fields[headers.MSG_ID],
        }
        try:
            return await publish_behind(self._nc, record, message.subject, message.body, fields)
        except JetStreamError:
            return Unacknowledged.NOT_STORED
        except (nats.errors.Error, OSError):
            return Unacknowledged.UNDER_WAY
