"""Finding out whether the message of a dead worker was stored, and making the answer final.

A worker may die between the record of a decision and the publish of its message. A *probe* is published
under the message's own dedup id, as a record of the prober: if the stream calls it a duplicate, the message
was stored; if not, it was not, and for as long as the dedup id holds it cannot be any more.

So an id can be taken by a probe instead of a message. Who finds an id taken asks ``taken_by`` before
answering "stored already".
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client

from broker_policy.audit.record import Record, RecordKey, RecordKind, digest
from broker_policy.dedup import dedup_id, redrive_dedup_id
from broker_policy.jetstream import get_known, publish
from mas_nats.wire import headers, subjects

PREFIX = "probe-"
"""What a prober's writer name begins with; no other writer's does."""
KEEP_PROBES = 660.0
"""Seconds a probe stays in the log: longer than the stream's duplicate window."""
_SUBJECT = subjects.audit_record(PREFIX, 0).rpartition(".")[0]


def is_probe(subject: str) -> bool:
    """Whether a subject is that of a prober's record."""
    return subject.startswith(_SUBJECT)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found: the message at ``sequence``, or nothing (0)."""

    sequence: int
    audit: str = ""  # the decision that the message names, "" when it is gone


class Prober:
    """A record writer that only probes. It opens itself with its first probe."""

    def __init__(
        self, nc: Client, namespace: str, key: RecordKey, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._nc = nc
        self._namespace = namespace
        self._key = key
        self._clock = clock
        self._writer = _new_writer()
        self._number = 0
        self._previous = ""

    async def probe(self, sender: str, message_id: str, letter: str = "") -> Probed:
        """Was the message ``message_id`` of ``sender`` stored? The answer is final.

        ``letter``: the one that was made of this dead letter.

        Raises:
            JetStreamError: the log refused the probe (it is full).
            nats.errors.Error: no answer; repeat.

        """
        if self._number == 0:
            await self._write(RecordKind.OPEN, f"{self._writer}.1")
        dedup = (
            redrive_dedup_id(self._namespace, sender, message_id, letter)
            if letter
            else dedup_id(self._namespace, sender, message_id)
        )
        taken = await self._write(RecordKind.MARK, dedup)
        if taken is None:
            return Probed(0)
        found = await get_known(self._nc, subjects.INBOX_STREAM, taken)
        if found is None:
            return Probed(taken)
        if is_probe(found.subject):
            return Probed(0)
        return Probed(taken, found.headers.get(headers.AUDIT, "-"))

    async def _write(self, kind: RecordKind, dedup: str) -> int | None:
        """Write the next record; when the id was taken, the sequence of what took it."""
        number = self._number + 1
        record = Record(
            namespace=self._namespace,
            writer=self._writer,
            number=number,
            previous=self._previous,
            kind=kind,
            time=int(self._clock() * 1000),
            revision=0,
        )
        body = record.encode()
        fields = {headers.MSG_ID: dedup, headers.RECORD_MAC: self._key.mac(body)}
        try:
            ack = await publish(self._nc, subjects.audit_record(self._writer, number), body, fields)
        except nats.errors.Error:
            # It may be in the log, so its number is neither free nor taken: go on as another writer.
            self._writer, self._number, self._previous = _new_writer(), 0, ""
            raise
        if ack.duplicate:
            return ack.sequence
        self._number, self._previous = number, digest(body)
        return None


def _new_writer() -> str:
    return PREFIX + secrets.token_hex(6)
