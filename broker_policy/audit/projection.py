"""Turning records into entries: the part of the projector that needs neither network nor disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import cast

import orjson

from broker_policy.audit import entry
from broker_policy.audit.draft import Draft
from broker_policy.audit.entry import Alarm, WorkerEvent
from broker_policy.audit.log import Stored
from broker_policy.audit.numbering import Received, WriterState, follow
from broker_policy.audit.record import DecisionLine, Outcome, Record, RecordKind, Report, Settlement, Way
from broker_policy.audit.settled import FINAL_FOR_MESSAGE, Settled
from broker_policy.audit.state_marks import STATE_RULES, StateMark
from mas_nats.wire.identity import agent_of

DecisionName = tuple[str, int, int]
"""Writer, record number and position: what names a decision in the log."""
MessageName = tuple[str, int]
"""Agent and log sequence: what names a message in an inbox."""
CLOCKS = 2000
"""Milliseconds by which the clock of a worker, which follows the server's, may differ from it."""
_EVENTS = {
    RecordKind.OPEN: WorkerEvent.OPEN,
    RecordKind.CLOSE: WorkerEvent.CLOSE,
    RecordKind.VOID: WorkerEvent.VOID,
}


@dataclass(frozen=True, slots=True)
class Pending:
    """A decision whose effect follows its record, and whose outcome has not come yet."""

    index: int
    way: Way
    agent: str
    time: int  # unix milliseconds: before it the message was not stored

    def encode(self) -> str:
        """As it lies in Redis."""
        return orjson.dumps([self.index, self.way, self.agent, self.time]).decode()

    @classmethod
    def decode(cls, raw: bytes) -> Pending:
        """As it came from Redis."""
        index, way, agent, time = orjson.loads(raw)
        return cls(index, Way(way), agent, time)


@dataclass(frozen=True, slots=True)
class Batch:
    """The last record of a writer that went with a batch, and where its decisions begin in the chain."""

    number: int
    first: int  # index

    def encode(self) -> str:
        """As it lies in Redis."""
        return orjson.dumps([self.number, self.first]).decode()

    @classmethod
    def decode(cls, raw: bytes) -> Batch:
        """As it came from Redis."""
        return cls(*orjson.loads(raw))


@dataclass(frozen=True, slots=True)
class Batched:
    """A decision of a batch: its index, and the message that it has by construction."""

    index: int
    agent: str
    sequence: int


@dataclass(slots=True)
class _Batch:
    """What a record of this append has in its writer's batch."""

    record: Record
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> index, log sequence

    def at(self, position: int) -> Batched | None:
        if position not in self.places:
            return None
        index, message = self.places[position]
        return Batched(index, agent_of(self.record.decisions[position].target), message)


@dataclass(slots=True)
class Known:
    """What Redis holds of the decisions and messages that a portion of the log speaks of."""

    pending: dict[DecisionName, Pending] = field(default_factory=dict)
    # Several decisions where a message was released by two.
    open: dict[MessageName, list[int]] = field(default_factory=dict)
    early: dict[MessageName, list[Report]] = field(default_factory=dict)
    states: dict[str, StateMark] = field(default_factory=dict)
    batched: dict[DecisionName, Batched] = field(default_factory=dict)


def wanted(portion: Iterable[Received]) -> tuple[set[DecisionName], set[MessageName]]:
    """What of Redis is needed to project ``portion``: settled decisions, and messages spoken of."""
    decisions: set[DecisionName] = set()
    messages: set[MessageName] = set()
    for received in portion:
        if (record := received.record) is not None:
            decisions.update((record.writer, s.number, s.position) for s in record.settlements)
            messages.update((r.agent, r.sequence) for r in record.reports)
    return decisions, messages


class Projection:
    """Builds one append from consecutive records.

    ``writers`` is what is known of the writers before; it is not changed. After ``finish`` the new states
    are in ``seen`` (None: forgotten). ``alarms`` are what was found wrong with the log, in words.
    """

    def __init__(self, draft: Draft, writers: dict[str, WriterState], known: Known) -> None:
        self.draft = draft
        self.seen: dict[str, WriterState | None] = {}
        self.alarms: list[str] = []
        self._writers = writers
        self._known = known
        self._settled = Settled()
        self._pending: dict[DecisionName, Pending] = {}
        self._answered: list[DecisionName] = []
        self._opened: defaultdict[str, dict[int, int]] = defaultdict(dict)  # agent -> sequence -> index
        self._also_opened: dict[MessageName, list[int]] = {}  # where ``_opened`` has another
        self._closed: dict[str, list[str]] = {}
        self._early = {name: list(reports) for name, reports in known.early.items()}
        self._told: dict[MessageName, list[Report]] = {}  # those of this append that found one
        self._states = dict(known.states)
        self._batches: dict[str, Batch] = {}
        self._batched: dict[tuple[str, int], _Batch] = {}
        self._torn: dict[DecisionName, Stored | None] = {}  # with the next record

    def take(self, received: Received) -> None:
        """Add one record."""
        stored, record = received.stored, received.record
        self.draft.sequence = stored.sequence
        if record is None:
            self._alarm(received, Alarm.UNREADABLE, stored.subject[:80], 0, 0)
            return
        state = self.seen[record.writer] if record.writer in self.seen else self._writers.get(record.writer)
        step = follow(state, received)
        for finding in step.findings:
            self._alarm(received, finding.alarm, record.writer, finding.first, finding.last)
        if not step.trusted:
            self.seen[record.writer] = step.state
            self._decisions(received, record, step.mark)
            return
        self.seen[record.writer] = None if record.kind is RecordKind.CLOSE else step.state
        if event := _EVENTS.get(record.kind):
            self.draft.add(
                entry.worker(
                    self.draft.next_index,
                    stored.sequence,
                    record.time,
                    event,
                    record.writer,
                    record.number,
                    record.revision,
                )
            )
        self._decisions(received, record, step.mark)
        singly: list[tuple[Batched, Settlement]] = []
        for settlement in record.settlements:
            batched = self._settlement(record.writer, settlement)
            if batched is not None:
                singly.append((batched, settlement))
        self._settle_singly(singly)
        for report in record.reports:
            self._report(report)

    def finish(self, now: int) -> None:
        """Add what follows from all records together. ``now`` is in unix milliseconds."""
        self._settled.write(self.draft, now)
        for name, following in self._torn.items():
            if name in self._pending:  # not stored before the log went on; what is since the server may know
                since = now if following is None else following.time
                self._pending[name] = replace(self._pending[name], time=since + CLOCKS)
        layout, draft = self.draft.layout, self.draft
        for writer, state in self.seen.items():
            if state is not None:
                draft.command("HSET", layout.writers, writer, state.encode())
            elif writer in self._writers:
                draft.command("HDEL", layout.writers, writer)
                draft.command("HDEL", layout.batches, writer)
        for writer, batch in self._batches.items():
            if self.seen.get(writer) is not None:
                draft.command("HSET", layout.batches, writer, batch.encode())
        self._write_pending()
        for agent, mark in self._states.items():
            if mark != self._known.states.get(agent):
                draft.command("HSET", layout.states, agent, mark.encode())
        self._write_opened()
        for agent, indexes in self._closed.items():
            draft.command_on_many("ZREM", layout.open(agent), indexes)
        self._write_early()

    # -- one record ----------------------------------------------------------------------------------
    def _alarm(self, received: Received, what: Alarm, writer: str, first: int, last: int) -> None:
        stored = received.stored
        self.draft.add(
            entry.alarm(self.draft.next_index, stored.sequence, stored.time, what, writer, first, last)
        )
        self.alarms.append(f"{what}, writer {writer!r}, records {first} to {last}")

    def _decisions(self, received: Received, record: Record, mark: str) -> None:
        draft, sequence = self.draft, received.stored.sequence
        trusted = not (mark and Alarm(mark).untrusted)
        start, batch = draft.next_index, _Batch(record)
        in_batch, nothing = Way.BATCH, Way.NONE  # looked up once, as in ``entry``
        for position, line in enumerate(record.decisions):
            if trusted and line.rule in STATE_RULES and self._in_chain(line):
                continue
            way, message = line.way, 0
            if way is in_batch and trusted:
                message = sequence + len(batch.places) + 1
                if message >= received.end:  # torn: what becomes of the rest must be found out of each
                    way, message = Way.LONE, 0
                    line = line._replace(way=way)  # noqa: PLW2901
                    self._torn[record.writer, record.number, position] = received.following
            index = draft.add_decision(
                entry.decision(draft.next_index, sequence, record, position, line, message, mark)
            )
            if message:
                self._opened[agent_of(line.target)][message] = index
                batch.places[position] = index, message
            elif trusted and way is not nothing:
                self._pending[record.writer, record.number, position] = Pending(
                    index, way, agent_of(line.target), line.time
                )
        if batch.places:
            self._batches[record.writer] = Batch(record.number, start)
            self._batched[record.writer, record.number] = batch

    def _in_chain(self, line: DecisionLine) -> bool:
        """Whether ``line`` is about a revision of direct state that another worker recorded before."""
        state = StateMark.of(line)
        if state is None:
            return False
        known = self._states.get(line.sender)
        if known is not None and known.covers(state):
            return True
        self._states[line.sender] = state if known is None else known.then(state)
        return False

    def _settlement(self, writer: str, settlement: Settlement) -> Batched | None:
        """Settle a decision; one of a batch is returned instead."""
        name = (writer, settlement.number, settlement.position)
        pending = self._pending.pop(name, None)
        if pending is None:
            pending = self._known.pending.pop(name, None)
            if pending is None:
                batch = self._batched.get((writer, settlement.number))
                return (batch and batch.at(settlement.position)) or self._known.batched.get(name)
            self._answered.append(name)
        self._settled.add(pending.index, settlement.outcome, message=settlement.sequence)
        if settlement.outcome is Outcome.COMMITTED and pending.way is Way.LONE:
            self._follow((pending.agent, settlement.sequence), pending.index)
        return None

    def _settle_singly(self, settled: list[tuple[Batched, Settlement]]) -> None:
        """What became of decisions whose batch was not answered, where that is not what it looks like.

        The place that one has by construction may have been taken by another, so all leave theirs first.
        """
        moved = [
            (batched, settlement)
            for batched, settlement in settled
            if settlement.outcome is not Outcome.COMMITTED or settlement.sequence != batched.sequence
            if self._leave(batched)
        ]
        for batched, settlement in moved:
            self._settled.add(batched.index, settlement.outcome, message=settlement.sequence)
            if settlement.outcome is not Outcome.COMMITTED:
                self._closed.setdefault(batched.agent, []).append(str(batched.index))
                continue
            self._follow((batched.agent, settlement.sequence), batched.index)

    def _follow(self, message: MessageName, index: int) -> None:
        """The message of a decision is known: what was and will be reported of it is about that decision."""
        agent, sequence = message
        opened = self._opened[agent]
        if sequence in opened:  # a delayed message, released by two: both are followed
            self._also_opened.setdefault(message, []).append(index)
        else:
            opened[sequence] = index
        for report in self._told.get(message, ()):  # of the other, which may be gone with it
            self._tell([index], report)
        for report in self._early.pop(message, ()):
            self._report(report)

    def _leave(self, batched: Batched) -> bool:
        """Take a decision's message from its place; whether it was still followed there."""
        opened = self._opened[batched.agent]
        if opened.get(batched.sequence) == batched.index:
            del opened[batched.sequence]
            return True
        place = (batched.agent, batched.sequence)
        if batched.index in self._known.open.get(place, ()):
            self._known.open[place].remove(batched.index)
            return True
        return False

    def _report(self, report: Report) -> None:
        name = (report.agent, report.sequence)
        indexes = [*self._known.open.get(name, ()), *self._also_opened.get(name, ())]
        if (index := self._opened[report.agent].get(report.sequence)) is not None:
            indexes.append(index)
        if not indexes:
            self._early.setdefault(name, []).append(report)
            return
        self._told.setdefault(name, []).append(report)
        self._tell(indexes, report)

    def _tell(self, indexes: list[int], report: Report) -> None:
        """What ``report`` means for all decisions followed by now, or for one that joins them."""
        for index in indexes:
            self._settled.add(index, report.outcome, reason=report.reason, attempt=report.attempt)
        if report.outcome not in FINAL_FOR_MESSAGE:
            return
        name = (report.agent, report.sequence)
        self._opened[report.agent].pop(report.sequence, None)
        self._also_opened.pop(name, None)
        self._known.open.pop(name, None)
        before = [str(index) for index in indexes if index <= self.draft.base.index]
        self._closed.setdefault(report.agent, []).extend(before)

    # -- all records together ------------------------------------------------------------------------
    def _write_pending(self) -> None:
        layout, draft = self.draft.layout, self.draft
        words: dict[str, list[str]] = {}
        for (writer, number, position), pending in self._pending.items():
            words.setdefault(writer, []).extend((f"{number}.{position}", pending.encode()))
        for writer, pairs in words.items():
            draft.command_on_many("HSET", layout.pending(writer), pairs)
            draft.command("SADD", layout.unsettled, writer)
        for writer, number, position in self._answered:
            draft.command("HDEL", layout.pending(writer), f"{number}.{position}")

    def _write_opened(self) -> None:
        layout, draft = self.draft.layout, self.draft
        opened: dict[str, list[str]] = {}
        for agent, places in self._opened.items():
            if places:
                opened[agent] = list(map(str, chain.from_iterable(places.items())))
        for (agent, sequence), indexes in self._also_opened.items():
            for index in indexes:
                opened.setdefault(agent, []).extend((str(sequence), str(index)))
        for agent, words in opened.items():
            draft.command_on_many("ZADD", layout.open(agent), words)
            draft.command("SADD", layout.opened, agent)

    def _write_early(self) -> None:
        layout, draft = self.draft.layout, self.draft
        for name in self._known.early.keys() - self._early.keys():
            draft.command("HDEL", layout.early, early_field(name))
        for name, reports in self._early.items():
            if reports != self._known.early.get(name):
                draft.command("HSET", layout.early, early_field(name), encode_reports(reports))


def early_field(name: MessageName) -> str:
    """The field of a message in the hash of early reports."""
    return f"{name[0]}.{name[1]}"


def encode_reports(reports: Iterable[Report]) -> str:
    """Early reports as they lie in Redis."""
    return orjson.dumps(
        [[r.agent, r.sequence, r.outcome, r.attempt, r.reason, r.time] for r in reports]
    ).decode()


def decode_reports(raw: bytes) -> list[Report]:
    """Early reports as they came from Redis."""
    rows = cast("list[tuple[str, int, str, int, str, int]]", orjson.loads(raw))
    return [
        Report(agent, sequence, Outcome(outcome), attempt, reason, time)
        for agent, sequence, outcome, attempt, reason, time in rows
    ]
