"""A record writer: numbers its records without gaps, links them, and gets each into the log once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import nats.errors
from nats.aio.client import Client

from broker_policy.audit.record import (
    DecisionLine,
    Outcome,
    Record,
    RecordKey,
    RecordKind,
    Report,
    Settlement,
    digest,
)
from broker_policy.jetstream import MESSAGE_LIMIT, Ack, JetStreamError, publish
from mas_nats.wire import headers, subjects

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 300.0
"""Seconds after which a writer that gets no answer gives up: half the stream's duplicate window, within
which a repeated publish is recognised."""
_T = TypeVar("_T")
_CARRY = 10_000
_PER_RECORD = 1_000


class LogFull(Exception):
    """The log takes no more: nothing may be delivered until the projector or the agents have caught up."""


class LogUnreachable(Exception):
    """The log did not answer for so long that this writer must end; a new one starts with the worker."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record ready to be published, alone or first in a batch."""

    record: Record
    body: bytes
    fields: dict[str, str]
    subject: str

    def reference(self, position: int) -> str:
        """Names decision ``position`` of this record, for ``Mas-Audit``."""
        return f"{self.record.writer}.{self.record.number}.{position}"


class RecordWriter:
    """Writes the records of one commit lane. Not for concurrent use: a lane commits one at a time."""

    def __init__(self, nc: Client, namespace: str, writer: str, key: RecordKey) -> None:
        self._nc = nc
        self._namespace = namespace
        self.name = writer
        self._key = key
        self._number = 0
        self._previous = ""
        self._revision = 0
        self._settlements: deque[Settlement] = deque()
        self._reports: deque[Report] = deque()
        self._carried: deque[DecisionLine] = deque(maxlen=_CARRY)
        self._tail_open = False

    # -- what the next record will also carry ---------------------------------------------------------
    def settle(self, number: int, position: int, outcome: Outcome, sequence: int = 0) -> None:
        """Say in the next record what became of a decision."""
        self._settlements.append(Settlement(number, position, outcome, sequence))

    def report(self, reports: Iterable[Report]) -> None:
        """Carry reports in the next record."""
        self._reports.extend(reports)

    def carry(self, lines: Iterable[DecisionLine]) -> None:
        """Carry refusals that could not be recorded when they were made."""
        self._carried.extend(lines)

    @property
    def owes(self) -> bool:
        """Whether something waits for a record, or the last record is not yet covered by a later one."""
        return bool(self._settlements or self._reports or self._carried or self._tail_open)

    # -- writing -------------------------------------------------------------------------------------
    def prepare(
        self, kind: RecordKind, decisions: Sequence[DecisionLine] = (), revision: int | None = None
    ) -> Prepared:
        """The next record. It is published by the caller, who then says ``written`` or ``give_back``."""
        if revision is not None:
            self._revision = revision
        record = Record(
            namespace=self._namespace,
            writer=self.name,
            number=self._number + 1,
            previous=self._previous,
            kind=kind,
            time=time.time_ns() // 1_000_000,
            revision=self._revision,
            decisions=(*decisions, *_take(self._carried, _PER_RECORD)),
            settlements=tuple(_take(self._settlements, _PER_RECORD)),
            reports=tuple(_take(self._reports, _PER_RECORD)),
        )
        body = record.encode()
        fields = {
            headers.MSG_ID: f"{self.name}.{record.number}",
            headers.RECORD_MAC: self._key.mac(body),
        }
        return Prepared(record, body, fields, subjects.audit_record(self.name, record.number))

    def written(self, prepared: Prepared) -> None:
        """The record is in the log."""
        self._number = prepared.record.number
        self._previous = digest(prepared.body)
        self._tail_open = prepared.record.kind is RecordKind.DECISIONS

    def give_back(self, prepared: Prepared, own: int) -> None:
        """The record is not in the log; its first ``own`` decisions are the caller's to repeat."""
        self._carried.extendleft(reversed(prepared.record.decisions[own:]))
        self._settlements.extendleft(reversed(prepared.record.settlements))
        self._reports.extendleft(reversed(prepared.record.reports))

    async def write(
        self, kind: RecordKind, decisions: Sequence[DecisionLine] = (), revision: int | None = None
    ) -> Prepared:
        """Write a record that goes alone; returns when it is durable.

        Raises:
            LogFull: the log refused it.
            LogUnreachable: no answer for ``GIVE_UP_AFTER`` seconds.

        """
        prepared = self.prepare(kind, decisions, revision)
        try:
            await until_answered(self._nc, prepared.subject, prepared.body, prepared.fields)
        except JetStreamError as error:
            self.give_back(prepared, len(decisions))
            if error.code == MESSAGE_LIMIT:
                raise LogFull from error
            raise
        self.written(prepared)
        return prepared

    async def resolve(self, prepared: Prepared) -> bool:
        """Whether a batch that was never answered had been stored.

        Takes the record's place with a ``VOID`` one under the same dedup id. If the stream calls that a
        duplicate, the batch had been stored, whole; if not, it was not and now never can be.
        """
        void = Record(
            namespace=self._namespace,
            writer=self.name,
            number=prepared.record.number,
            previous=self._previous,
            kind=RecordKind.VOID,
            time=time.time_ns() // 1_000_000,
            revision=self._revision,
        )
        body = void.encode()
        fields = {**prepared.fields, headers.RECORD_MAC: self._key.mac(body)}
        ack = await until_answered(self._nc, prepared.subject, body, fields, room=True)
        if ack.duplicate:
            self.written(prepared)
            return True
        self.written(Prepared(void, body, fields, prepared.subject))
        return False


async def until_answered(
    nc: Client, subject: str, body: bytes, fields: dict[str, str], *, room: bool = False
) -> Ack:
    """Publish under a dedup id until the stream answers; repeating is harmless within its window.

    ``room``: also wait while the stream is full.

    Raises:
        JetStreamError: the stream refused it; nothing was stored.
        LogUnreachable: no answer for ``GIVE_UP_AFTER`` seconds.

    """
    started = time.monotonic()
    pause = 0.05
    repeated = False
    while True:
        try:
            return replace(await publish(nc, subject, body, fields), repeated=repeated)
        except JetStreamError as error:
            if not (room and error.code == MESSAGE_LIMIT):
                raise
        except (nats.errors.Error, OSError) as error:
            log.warning("the log did not answer (%s), repeating", type(error).__name__)
            repeated = True
        if time.monotonic() - started > GIVE_UP_AFTER:
            raise LogUnreachable(f"no answer from the log for {GIVE_UP_AFTER:.0f} s")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


def _take(queue: deque[_T], most: int) -> list[_T]:
    return [queue.popleft() for _ in range(min(len(queue), most))]
