"""What stands in the chain: decisions, their outcomes, workers that come and go, and alarms.

Keys are short because an entry is kept for years:

    every entry   i index   k kind   s log sequence   at unix milliseconds
    decision      w writer  n its record  p position in it  id message id  f from  t to  o operation
                  y type  z bytes  d decision  r rule  v policy revision  c commitment  x certificate
                  wy way of the effect  q log sequence of the message, where it is known by construction
                  b operator that acted in the sender's stead  l on which dead letter
                  m why the record is marked (an alarm names it)
    outcome       o outcome  x index ranges  q log sequences, one for each index  r reason  a attempt
                  g agent, where the message's decision is not known
    worker        e open, close, void, lost   w writer   n its record
    alarm         e what is wrong   w writer   n first number   to last number
    loss          n first and to last entry that Redis lost   h hash of the last   r why, as the operator says
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import Any

from broker_policy.audit.chain import MAX_INT
from broker_policy.audit.record import DecisionLine, Outcome, Record, Way
from mas_nats.wire.base64url import base64url
from mas_nats.wire.identity import is_id
from mas_nats.wire.verdict import Decision

Entry = dict[str, Any]
"""An entry as it is in the chain."""


class Kind(StrEnum):
    """What an entry is about."""

    DECISION = "d"
    OUTCOME = "o"
    WORKER = "w"
    ALARM = "a"
    LOSS = "l"


class Alarm(StrEnum):
    """What is wrong with the log."""

    GAP = "gap"  # records of a writer are missing: removed before they were projected
    BAD_MAC = "mac"  # a record was altered, or is not a worker's
    BROKEN_LINK = "link"  # a record does not follow the one before it
    RENUMBERED = "renumbered"  # a number came twice
    NO_OPEN = "noopen"  # a writer's first record does not open it
    MISPLACED = "misplaced"  # a record under another subject, or of another namespace
    UNREADABLE = "unreadable"  # not a record
    LOG_RESTARTED = "restarted"  # the log begins anew, below what was projected already

    @property
    def untrusted(self) -> bool:
        """Whether what such a record says about messages may be false."""
        return self in (Alarm.BAD_MAC, Alarm.RENUMBERED, Alarm.MISPLACED)


class WorkerEvent(StrEnum):
    """What a worker did."""

    OPEN = "open"
    CLOSE = "close"
    VOID = "void"  # a record of it was never stored; its number is taken
    LOST = "lost"  # it fell silent and left decisions behind whose outcome had to be found out


WAY_CODE = {Way.NONE: "n", Way.BATCH: "b", Way.LONE: "l", Way.ACT: "a"}
UNSETTLED = " "
"""The outcome of a decision that is not known yet."""
_COMMITTED = Outcome.COMMITTED
"""Looked up once: Python 3.11 takes ten times as long for a member of an enumeration as for a variable."""
NOT_A_DECISION = "-"
"""Stands in the outcomes for entries that are not decisions."""
MAX_RANGES = 64
"""Index ranges in one outcome entry."""


def decision(
    index: int, sequence: int, record: Record, position: int, line: DecisionLine, message: int, mark: str
) -> Entry:
    """The entry of one decision; ``message`` is the log sequence of its message, 0 when unknown."""
    op, identifier, sender, target, kind, size, decided, rule, way, time, committed, print_, by, letter = line
    out: Entry = {
        "at": time,
        "d": decided,
        "f": sender,
        "i": index,
        "id": identifier,
        "k": "d",
        "n": record.number,
        "o": op,
        "p": position,
        "r": rule,
        "s": sequence,
        "t": target,
        "v": record.revision,
        "w": record.writer,
        "wy": WAY_CODE[way],
        "y": kind,
        "z": size,
    }
    if committed:
        out["c"] = committed
    if print_:
        out["x"] = short_fingerprint(print_)
    if by:
        out["b"] = by
    if letter:
        out["l"] = letter
    if message:
        out["q"] = message
    if mark:
        out["m"] = mark
    return out


def outcome(
    index: int,
    sequence: int,
    time: int,
    what: Outcome,
    indexes: Sequence[int],
    *,
    messages: Sequence[int] = (),
    reason: str = "",
    attempt: int = 0,
    agent: str = "",
) -> Entry:
    """The entry that gives ``what`` as the outcome of the decisions at ``indexes`` (ascending)."""
    out: Entry = {"at": time, "i": index, "k": "o", "o": what, "s": sequence, "x": ranges(indexes)}
    if messages:
        out["q"] = list(messages)
    if reason:
        out["r"] = reason
    if attempt:
        out["a"] = attempt
    if agent:
        out["g"] = agent
    return out


def worker(
    index: int, sequence: int, time: int, event: WorkerEvent, writer: str, number: int, revision: int = 0
) -> Entry:
    """The entry of a worker that came, went or took back a record."""
    return {
        "at": time,
        "e": event,
        "i": index,
        "k": "w",
        "n": number,
        "s": sequence,
        "v": revision,
        "w": writer,
    }


def alarm(index: int, sequence: int, time: int, what: Alarm, writer: str, first: int, last: int) -> Entry:
    """The entry of an alarm about records ``first`` to ``last`` of ``writer``."""
    return {
        "at": time,
        "e": what,
        "i": index,
        "k": "a",
        "n": first,
        "s": sequence,
        "to": last,
        "w": writer,
    }


def loss(index: int, sequence: int, time: int, first: int, last: int, digest: str, reason: str) -> Entry:
    """The entry by which somebody accepts that Redis lost the entries ``first`` to ``last``."""
    return {
        "at": time,
        "h": digest,
        "i": index,
        "k": "l",
        "n": first,
        "r": reason,
        "s": sequence,
        "to": last,
    }


_FOUND = frozenset({Decision.ALERT, Decision.DLP_REDACTED})
"""Accepted, and data-loss prevention found something."""
_ACCEPTING = _FOUND | {Decision.ALLOWED}


def refuses(decision: Entry) -> bool:
    """Whether a decision is a refusal."""
    return decision["d"] not in _ACCEPTING


def first_outcome(decision: Entry) -> str:
    """The outcome that a decision has when it enters the chain."""
    if (mark := decision.get("m")) and Alarm(mark).untrusted:
        return Outcome.UNKNOWN
    if decision["wy"] == "b":
        return _COMMITTED
    if decision["wy"] != "n":
        return UNSETTLED
    if refuses(decision):
        return Outcome.REFUSED
    # Accepted, and nothing follows: a repetition of what is there already, or a connection.
    return Outcome.DUPLICATE if decision["r"] == "duplicate" else Outcome.APPLIED


def ranges(indexes: Iterable[int]) -> list[list[int]]:
    """Ascending numbers as ``[first, last]`` pairs."""
    out: list[list[int]] = []
    for index in indexes:
        if out and out[-1][1] == index - 1:
            out[-1][1] = index
        else:
            out.append([index, index])
    return out


def unranged(pairs: Iterable[Sequence[int]]) -> Iterable[int]:
    """The numbers in ``[first, last]`` pairs."""
    for first, last in pairs:
        yield from range(first, last + 1)


def index_names(entry: Entry) -> list[str]:
    """The indexes that list a decision, by name.

    A target that is no valid id (it was refused) has none: an agent must not be able to fill Redis with
    index names of its choice.
    """
    return [
        *_names_of_verdict(entry["d"], entry["r"]),
        *agent_names("sender", entry["f"]),
        *agent_names("target", entry["t"]),
    ]


@lru_cache(maxsize=1024)
def _names_of_verdict(decision: str, rule: str) -> tuple[str, ...]:
    if decision in _FOUND or decision == Decision.DLP_BLOCKED:
        found = rule.removeprefix("dlp:").split(",")
        return f"decision:{decision}", *(f"violation:dlp:{each}" for each in found)
    if decision not in _ACCEPTING:
        return f"decision:{decision}", f"violation:{rule or decision}"
    return (f"decision:{decision}",)


@lru_cache(maxsize=4096)
def agent_names(role: str, name: str) -> tuple[str, ...]:
    """The index of the decisions whose ``role`` (sender, target) is ``name``; none where it is no id."""
    return (f"{role}:{name}",) if all(map(is_id, name.split("/"))) else ()


@lru_cache(maxsize=4096)
def short_fingerprint(fingerprint: str) -> str:
    """A hexadecimal SHA-256 in base64url, a third shorter; anything else as it is."""
    try:
        raw = bytes.fromhex(fingerprint)
    except ValueError:
        return fingerprint
    return base64url(raw)


@dataclass(frozen=True, slots=True)
class Malformed(Exception):
    """A record decodes but does not hold what a record holds."""

    what: str


_TYPES = tuple({"size": int, "time": int, "way": Way}.get(name, str) for name in DecisionLine._fields)


def require_well_formed(record: Record) -> None:
    """Check the types of what JSON brought, so that nothing in the log can stop the projector.

    Raises:
        Malformed: a field is of another type or out of range.

    """
    if not _texts(record.namespace, record.writer, record.previous):
        raise Malformed("names")
    if not _numbers(record.number, record.time, record.revision):
        raise Malformed("numbers")
    lines = record.decisions
    if tuple(map(type, chain.from_iterable(lines))) != _TYPES * len(lines):
        raise Malformed("decision")
    if not all(0 <= line.size <= MAX_INT and 0 <= line.time <= MAX_INT for line in lines):
        raise Malformed("decision")
    for settled in record.settlements:
        if not _numbers(settled.number, settled.position, settled.sequence):
            raise Malformed("settlement")
    for report in record.reports:
        if not (_texts(report.agent, report.reason) and is_id(report.agent)):
            raise Malformed("report")
        if not _numbers(report.sequence, report.attempt, report.time):
            raise Malformed("report")


def _texts(*values: object) -> bool:
    return all(type(value) is str for value in values)


def _numbers(*values: object) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_INT for value in values)
