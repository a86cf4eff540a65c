"""A record writer: numbers its records without gaps, links them, and gets each into the log once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.answered import (
    LogUnreachable,
    MaybeStored,
    publish_until_answered,
    until_answered,
)
from broker_policy.commit.lines import weight
from broker_policy.commit.log_room import LogRoom
from broker_policy.jetstream import NO_ROOM, JetStreamError, get_known, get_message, stream_info
from mas_nats.wire import headers, subjects

log = logging.getLogger(__name__)

OWN_BYTES = 500_000
"""Bytes of decisions (by ``weight``) that a lane puts into one record. With what else a record carries it
stays below the million bytes that nats-server takes by default."""
_CARRIED_BYTES = 200_000
_CARRY = 10_000
_SETTLEMENTS = 1_000
_T = TypeVar("_T")


class LogFull(Exception):
    """The log takes no more: nothing may be delivered until the projector or the agents have caught up."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record ready to be published, alone or first in a batch."""

    record: Record
    body: bytes
    fields: dict[str, str]
    subject: str
    connection: int
    """The number of the connection that there was: it was not stored over an earlier one."""

    def reference(self, position: int) -> str:
        """Names decision ``position`` of this record, for ``Mas-Audit``."""
        return f"{self.record.writer}.{self.record.number}.{position}"


class RecordWriter:
    """Writes the records of one commit lane. Not for concurrent use: a lane commits one at a time.

    ``room``: the log's, where it is limited. ``messages``: whether its records are about messages to store.
    ``told`` of each record once it is in the log.
    """

    def __init__(
        self,
        nc: Client,
        namespace: str,
        writer: str,
        key: RecordKey,
        *,
        room: LogRoom | None = None,
        messages: bool = True,
        clock: Milliseconds = wall_clock,
        told: Callable[[Record], None] | None = None,
    ) -> None:
        self._nc = nc
        self._messages = messages
        self._told = told
        self._clock = clock
        self._room = room
        self._namespace = namespace
        self.name = writer
        self._key = key
        self._number = 0
        self._previous = ""
        self._revision = 0
        self._settlements: deque[Settlement] = deque()
        self._carried: deque[DecisionLine] = deque(maxlen=_CARRY)
        self._dropped = 0
        self._tail_open = False
        self._following = asyncio.Lock()
        self._written_over = -1  # the number of a connection
        self._refused: tuple[int, Exception] | None = None  # over which connection, and how

    @property
    def opened(self) -> bool:
        """Whether the first record is in the log."""
        return self._number > 0

    # -- what the next record will also carry ---------------------------------------------------------
    def settle(self, number: int, position: int, outcome: Outcome, sequence: int = 0) -> None:
        """Say in the next record what became of a decision."""
        self._settlements.append(Settlement(number, position, outcome, sequence))

    def carry(self, lines: Iterable[DecisionLine]) -> None:
        """Carry refusals that could not be recorded when they were made; the oldest give way."""
        for line in lines:
            self._dropped += len(self._carried) == _CARRY
            self._carried.append(line)

    @property
    def owes(self) -> bool:
        """Whether something waits for a record, or the last record is not yet covered by a later one."""
        return bool(self._settlements or self._carried or self._tail_open)

    # -- writing -------------------------------------------------------------------------------------
    def require_room(self) -> None:
        """Refuse what makes the log grow beyond its limit.

        Raises:
            LogFull: it has reached it.

        """
        room = self._room
        if room is not None and (room.full if self._messages else room.exhausted):
            raise LogFull

    def prepare(
        self,
        kind: RecordKind,
        decisions: Sequence[DecisionLine] = (),
        reports: Sequence[Report] = (),
        *,
        revision: int | None = None,
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
            time=self._clock(),
            revision=self._revision,
            decisions=(*decisions, *self._take_carried()),
            settlements=tuple(_take(self._settlements, _SETTLEMENTS)),
            reports=tuple(reports),
        )
        body = record.encode()
        fields = {
            headers.MSG_ID: f"{self.name}.{record.number}",
            headers.RECORD_MAC: self._key.mac(body),
        }
        subject = subjects.audit_record(self.name, record.number)
        return Prepared(record, body, fields, subject, self._nc.stats["reconnects"])

    def written(self, prepared: Prepared) -> None:
        """The record is in the log."""
        self._number = prepared.record.number
        self._previous = digest(prepared.body)
        self._written_over = prepared.connection
        self._tail_open = prepared.record.kind is RecordKind.DECISIONS
        self.stored(len(prepared.body))
        if self._told is not None:
            self._told(prepared.record)
        if self._dropped:
            log.error("%d refusals made while the log was full are not in the audit", self._dropped)
            self._dropped = 0

    def stored(self, size: int, count: int = 1) -> None:
        """``count`` records, or messages that follow one, of ``size`` bytes together are in the log."""
        if self._room is not None:
            self._room.written(size, count)

    def give_back(self, prepared: Prepared, own: int) -> None:
        """The record is not in the log; its first ``own`` decisions and its reports are the caller's."""
        self._carried.extendleft(reversed(prepared.record.decisions[own:]))
        self._settlements.extendleft(reversed(prepared.record.settlements))

    async def write(
        self,
        kind: RecordKind,
        decisions: Sequence[DecisionLine] = (),
        reports: Sequence[Report] = (),
        *,
        revision: int | None = None,
    ) -> Prepared:
        """Write a record that goes alone; returns when it is durable.

        Raises:
            LogFull: the log refused it; decisions and reports are not in it.
            LogUnreachable: no answer for ``GIVE_UP_AFTER`` seconds.

        """
        if kind in (RecordKind.DECISIONS, RecordKind.MARK):
            self.require_room()
        prepared = self.prepare(kind, decisions, reports, revision=revision)
        await self.put(prepared, len(decisions))
        return prepared

    async def put(self, prepared: Prepared, own: int, *, repeated: bool = False) -> int:
        """Publish a record that goes alone; its place in the log, once it is durable.

        ``own`` as for ``give_back``. ``repeated``: an earlier try was not answered.

        Raises: as ``write``.
        """
        try:
            return await self._put(prepared, own, repeated=repeated)
        except JetStreamError as error:
            if error.code in NO_ROOM:
                raise LogFull from error
            raise

    async def _put(self, prepared: Prepared, own: int, *, repeated: bool = False) -> int:
        try:
            ack = await publish_until_answered(
                self._nc, prepared.subject, prepared.body, prepared.fields, repeated=repeated
            )
        except MaybeStored:
            # Its number is neither free nor taken, so it has to stay this record's.
            try:
                ack = await publish_until_answered(
                    self._nc, prepared.subject, prepared.body, prepared.fields, room=True
                )
            except (JetStreamError, MaybeStored) as error:
                raise LogUnreachable(f"record {prepared.record.number} may be stored, or not") from error
        except JetStreamError:
            self.give_back(prepared, own)
            raise
        self.written(prepared)
        return ack.sequence

    async def follow_connection(self) -> None:
        """Have a record in the log that was stored over the present connection; called before any message.

        A power cut can leave a batch of another worker's in part. What was under way here, and is repeated
        when the server is back, would lie where the rest of that batch is missing, as if it were of it. So
        behind what a server found when it started comes a record before any message.

        Raises:
            nats.errors.ConnectionReconnectingError: there is no connection.
            JetStreamError: the log refused the record.
            LogUnreachable: no answer for ``GIVE_UP_AFTER`` seconds.

        """
        while not self._follows():
            async with self._following:
                if self._follows():
                    return
                mark = self.prepare(RecordKind.MARK)
                try:
                    await self._put(mark, 0)
                except (JetStreamError, LogUnreachable) as error:
                    self._refused = mark.connection, error  # the others that wait need not ask, too
                    raise

    def _follows(self) -> bool:
        if not self._nc.is_connected:
            raise nats.errors.ConnectionReconnectingError
        connection: int = self._nc.stats["reconnects"]
        if self._written_over == connection:
            return True
        if self._refused is not None and self._refused[0] == connection:
            raise self._refused[1]
        return False

    async def close(self) -> None:
        """Write what is still owed, then the last record; what finds no room is left to the projector."""
        try:
            while self._carried or len(self._settlements) > _SETTLEMENTS:
                await self.write(RecordKind.MARK)
            await self.write(RecordKind.CLOSE)
        except LogFull:
            log.warning("record writer %s ended without a last record: the log is full", self.name)

    async def resolve(self, prepared: Prepared) -> int:
        """Where the record of a batch that was never answered lies in the log; 0: it had not been stored.

        Takes the record's place with a ``VOID`` one under the same dedup id. If the stream calls that a
        duplicate, the batch had been stored, maybe in part; if not, it was not and now never can be.

        Raises:
            LogUnreachable: no answer for ``GIVE_UP_AFTER`` seconds, or none that decides it.

        """
        void = Record(
            namespace=self._namespace,
            writer=self.name,
            number=prepared.record.number,
            previous=self._previous,
            kind=RecordKind.VOID,
            time=self._clock(),
            revision=self._revision,
        )
        body = void.encode()
        fields = {**prepared.fields, headers.RECORD_MAC: self._key.mac(body)}
        before = await self._last_sequence()
        answer = await publish_until_answered(self._nc, prepared.subject, body, fields, room=True)
        # What was there before the first try is no try. A later one may be a duplicate of this very VOID.
        stored = answer.duplicate and (
            answer.sequence <= before or await self._batch_at(answer.sequence, prepared, body)
        )
        self.written(prepared if stored else replace(prepared, record=void, body=body, fields=fields))
        return answer.sequence if stored else 0

    async def _last_sequence(self) -> int:
        async def ask() -> int:
            info = await stream_info(self._nc, subjects.INBOX_STREAM)
            return int(info["state"]["last_seq"])

        return await until_answered(ask)

    async def _batch_at(self, sequence: int, prepared: Prepared, void: bytes) -> bool:
        """Whether the record at ``sequence`` is the batch's, and not the ``void`` one."""
        found = await until_answered(lambda: get_known(self._nc, subjects.INBOX_STREAM, sequence))
        if found is not None and found.data in (prepared.body, void):
            return found.data == prepared.body
        # Projected and removed by now: the batch's first message would come after it.
        message = await until_answered(lambda: get_message(self._nc, subjects.INBOX_STREAM, sequence + 1))
        if message is not None and message.headers.get(headers.AUDIT) == prepared.reference(0):
            return True
        raise LogUnreachable(f"whether record {prepared.record.number} was stored cannot be known any more")

    def _take_carried(self) -> list[DecisionLine]:
        taken: list[DecisionLine] = []
        room = _CARRIED_BYTES
        while self._carried and room > 0:
            taken.append(self._carried.popleft())
            room -= weight(taken[-1])
        return taken


def _take(queue: deque[_T], most: int) -> list[_T]:
    return [queue.popleft() for _ in range(min(len(queue), most))]
