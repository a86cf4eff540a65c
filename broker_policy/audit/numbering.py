"""Does a record follow its writer's last one? Numbers, links and MACs, checked in the order of the log."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from broker_policy.audit.entry import Alarm, Malformed, require_well_formed
from broker_policy.audit.log import Stored
from broker_policy.audit.record import NewerRecord, Record, RecordKey, RecordKind, Way, digest
from mas_nats.wire import subjects

NO_END = 1 << 63
"""Beyond every sequence."""


@dataclass(frozen=True, slots=True)
class WriterState:
    """The last record seen of a writer."""

    number: int
    digest: str  # "" when it is not known, after a record that was altered
    seen: int  # unix milliseconds, by the log's clock

    def encode(self) -> str:
        """As it lies in Redis."""
        return orjson.dumps([self.number, self.digest, self.seen]).decode()

    @classmethod
    def decode(cls, raw: bytes) -> WriterState:
        """As it came from Redis."""
        return cls(*orjson.loads(raw))


@dataclass(frozen=True, slots=True)
class Received:
    """A record as it came from the log."""

    stored: Stored
    record: Record | None  # None when it is unreadable
    authentic: bool
    digest: str
    end: int = NO_END
    """What went with it lies before this sequence: there is the next record, or the log ends."""
    following: Stored | None = None
    """The record at ``end``; None where the log ended there when it was read."""

    @property
    def claimed(self) -> int:
        """The sequence of the last message that went with it, by what it says; its own where none did."""
        lines = self.record.decisions if self.record is not None else ()
        return self.stored.sequence + sum(line.way is Way.BATCH for line in lines)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, with the numbers it is about."""

    alarm: Alarm
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a record means for its writer; ``state`` is None when nothing is known of it afterwards."""

    findings: tuple[Finding, ...]
    state: WriterState | None

    @property
    def mark(self) -> str:
        """How the record's decisions are marked; "" when all is well."""
        for finding in self.findings:
            if finding.alarm.untrusted:
                return finding.alarm
        return self.findings[0].alarm if self.findings else ""

    @property
    def trusted(self) -> bool:
        """Whether the record may speak about messages."""
        return not any(finding.alarm.untrusted for finding in self.findings)


def receive(stored: Stored, namespace: str, key: RecordKey, following: Stored | None = None) -> Received:
    """Read a record and authenticate it. ``following`` is the next one, where it is known.

    Raises:
        NewerRecord: a worker of a newer version wrote it; this one must leave it where it is.

    """
    record: Record | None
    authentic = bool(stored.mac) and stored.mac.isascii() and key.verify(stored.body, stored.mac)
    try:
        record = Record.decode(stored.body)
        require_well_formed(record)
    except NewerRecord:
        if authentic:
            raise
        record = None
    except (ValueError, AttributeError, Malformed):
        record = None
    if record is not None and record.namespace != namespace:
        authentic = False
    end = NO_END if following is None else following.sequence
    return Received(stored, record, authentic, digest(stored.body), end, following)


def follow(state: WriterState | None, received: Received) -> Step:
    """Check a readable record against the last one of the same writer."""
    record = received.record
    if record is None:
        raise ValueError("an unreadable record has no writer")
    number = record.number
    last = state.number if state is not None else 0
    here = Finding(Alarm.BAD_MAC, number, number)
    if not received.authentic:
        # Probably the real record, altered in its place: the next one is not missing it.
        if state is not None and number == last + 1:
            state = WriterState(number, "", received.stored.time)
        return Step((here,), state)
    if received.stored.subject != subjects.audit_record(record.writer, number):
        return Step((Finding(Alarm.MISPLACED, number, number),), state)
    if number <= last:
        return Step((Finding(Alarm.RENUMBERED, number, number),), state)
    return Step(
        tuple(_order_findings(state, record)), WriterState(number, received.digest, received.stored.time)
    )


def _order_findings(state: WriterState | None, record: Record) -> list[Finding]:
    number = record.number
    last = state.number if state is not None else 0
    if number > last + 1:
        return [Finding(Alarm.GAP, last + 1, number - 1)]
    if state is None:
        if record.kind is not RecordKind.OPEN or record.previous:
            return [Finding(Alarm.NO_OPEN, number, number)]
    elif state.digest and record.previous != state.digest:
        return [Finding(Alarm.BROKEN_LINK, number, number)]
    return []
