"""An audit record: all decisions of one batch, as a worker writes it to the log (DESIGN 4, 5, 7).

A *writer* is one commit lane of one worker process; it numbers its records from 1 without gaps, links
each to the one before by its digest, and authenticates each with a MAC, so that a record that is
removed or altered before it is projected is found by the projector.

The body is JSON, so that a person looking at the stream can read it; it never holds a payload.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import orjson


class NewerRecord(ValueError):
    """A record says something that this version does not know; a newer one wrote it."""


class Outcome(StrEnum):
    """What became of a decision, as one letter."""

    REFUSED = "r"  # by construction: nothing was delivered
    COMMITTED = "c"  # the message is in the inbox stream
    NOT_COMMITTED = "n"  # decided, but the message was never stored; the sender was not told "accepted"
    APPLIED = "a"  # a reply was published, a state was written
    FAILED = "f"  # the act did not happen (state conflict, reply stream full)
    DUPLICATE = "u"  # the message was there already
    REDELIVERED = "v"  # at least one attempt failed
    HANDLED = "h"
    DEAD = "d"
    EXPIRED = "x"
    UNKNOWN = "?"  # it cannot be known any more: the worker died in the act, or the message left unseen


class Way(StrEnum):
    """How the effect of a decision follows its record."""

    NONE = "none"  # refused: nothing follows
    BATCH = "batch"  # in the same atomic batch: the k-th such decision is k places after the record
    LONE = "lone"  # a publish of its own, after the record was acknowledged; settled later
    ACT = "act"  # a reply or a state write, after the record was acknowledged; settled later


class DecisionLine(NamedTuple):
    """One decision in a record."""

    op: str  # send, request, reply, state, connect, delay, release, withdraw, prompt, token, redrive, purge
    message_id: str
    sender: str
    target: str
    type: str
    size: int  # bytes of body
    decision: str
    rule: str
    way: Way
    time: int  # unix milliseconds
    commitment: str = ""  # base64url HMAC-SHA256 of target, type and body under the salt; "" when refused
    fingerprint: str = ""  # SHA-256 of the sender's certificate, hexadecimal
    by: str = ""  # the operator that acted in the sender's stead
    letter: str = ""  # on which dead letter (``Errand.reference``)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of a LONE or ACT decision of an earlier (or this) record of the same writer."""

    number: int
    position: int  # index into the record's decisions, from 0
    outcome: Outcome
    sequence: int = 0  # of the message in the inbox stream, for LONE


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a delivered message, reported by its agent, the server or a worker."""

    agent: str
    sequence: int  # in the inbox stream
    outcome: Outcome
    attempt: int
    reason: str  # a class name or a decision name, never a payload
    time: int


class RecordKind(StrEnum):
    """What a record is there for."""

    OPEN = "open"  # the first of a writer
    DECISIONS = "decisions"
    MARK = "mark"  # settlements and reports only; also covers the tail of a writer that fell silent
    VOID = "void"  # takes the place of a record whose publish was never answered and did not arrive
    CLOSE = "close"  # the last of a writer that stopped cleanly


@dataclass(frozen=True, slots=True)
class Record:
    """One record of one writer."""

    namespace: str
    writer: str
    number: int
    previous: str  # digest of the writer's previous record, "" for the first
    kind: RecordKind
    time: int
    revision: int  # the policy revision under which the whole batch was judged
    decisions: tuple[DecisionLine, ...] = ()
    settlements: tuple[Settlement, ...] = ()
    reports: tuple[Report, ...] = ()

    def encode(self) -> bytes:
        """The record as JSON."""
        out: dict[str, Any] = {
            "v": 1,
            "ns": self.namespace,
            "writer": self.writer,
            "n": self.number,
            "prev": self.previous,
            "kind": self.kind,
            "time": self.time,
            "rev": self.revision,
        }
        if self.decisions:
            out["decisions"] = [_line_out(line) for line in self.decisions]
        if self.settlements:
            out["settled"] = [[s.number, s.position, s.outcome, s.sequence] for s in self.settlements]
        if self.reports:
            out["reports"] = [
                [r.agent, r.sequence, r.outcome, r.attempt, r.reason, r.time] for r in self.reports
            ]
        return orjson.dumps(out)

    @classmethod
    def decode(cls, body: bytes) -> Record:
        """Read a record.

        Raises:
            NewerRecord: it has another version, or a key or a value that this one does not know. What is
                not known must not be left out of the chain, so nobody reads around it.
            ValueError: it is none.

        """
        raw = orjson.loads(body)
        try:
            if raw["v"] != 1 or not raw.keys() <= _KEYS:
                raise NewerRecord(f"a record of version {raw['v']} with {sorted(raw.keys() - _KEYS)}")  # noqa: TRY301
            return cls(
                namespace=raw["ns"],
                writer=raw["writer"],
                number=raw["n"],
                previous=raw["prev"],
                kind=RecordKind(raw["kind"]),
                time=raw["time"],
                revision=raw["rev"],
                decisions=tuple(_line_in(line) for line in raw.get("decisions", ())),
                settlements=tuple(
                    Settlement(n, position, Outcome(outcome), sequence)
                    for n, position, outcome, sequence in raw.get("settled", ())
                ),
                reports=tuple(
                    Report(agent, sequence, Outcome(outcome), attempt, reason, time)
                    for agent, sequence, outcome, attempt, reason, time in raw.get("reports", ())
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an audit record: {error!r}") from error
        except NewerRecord:
            raise
        except ValueError as error:  # of an enumeration, or a settlement of another length
            raise NewerRecord(f"an unknown value in a record: {error}") from error


_KEYS = frozenset(
    ("v", "ns", "writer", "n", "prev", "kind", "time", "rev", "decisions", "settled", "reports")
)
_LINE_KEYS = (  # in the order of the fields
    "op",
    "id",
    "from",
    "to",
    "type",
    "size",
    "decision",
    "rule",
    "way",
    "at",
    "commit",
    "cert",
    "by",
    "letter",
)
_NO_OPERATOR = _LINE_KEYS.index("by")
"""So many fields a line has that is no operator's doing."""
_KNOWN_LINE_KEYS = frozenset(_LINE_KEYS)
_WAYS = {str(way): way for way in Way}


def _line_out(line: DecisionLine) -> dict[str, Any]:
    op, identifier, sender, target, kind, size, decided, rule, way, time, committed, print_, by, letter = line
    if by or letter or "" in line[:_NO_OPERATOR]:
        return {key: value for key, value in zip(_LINE_KEYS, line, strict=True) if value != ""}
    return {  # as most are: written out it takes half as long
        "op": op,
        "id": identifier,
        "from": sender,
        "to": target,
        "type": kind,
        "size": size,
        "decision": decided,
        "rule": rule,
        "way": way,
        "at": time,
        "commit": committed,
        "cert": print_,
    }


def _line_in(raw: dict[str, Any]) -> DecisionLine:
    way = raw.get("way", "")
    raw["way"] = (type(way) is str and _WAYS.get(way)) or Way(way)
    return DecisionLine._make(_in_order(tuple(raw))((*raw.values(), "")))


@lru_cache(maxsize=256)
def _in_order(keys: tuple[str, ...]) -> itemgetter[Any]:
    """What takes the fields out of the values of ``keys`` and the "" behind them."""
    if unknown := set(keys) - _KNOWN_LINE_KEYS:
        raise NewerRecord(f"a decision with {sorted(unknown)}")
    return itemgetter(*(keys.index(key) if key in keys else len(keys) for key in _LINE_KEYS))


def digest(body: bytes) -> str:
    """What the writer's next record carries as ``previous``."""
    return hashlib.sha256(body).hexdigest()


@dataclass(slots=True)
class RecordKey:
    """The key that authenticates records; every worker has it, nobody else.

    ``previous`` are other keys that are accepted: retired ones, under which records were written that may
    still wait for projection, and the next one, which another worker may use already.
    """

    secret: bytes = field(repr=False)
    previous: tuple[bytes, ...] = field(default=(), repr=False)

    def become(self, other: RecordKey) -> None:
        """Be ``other`` from here on: the keys were rotated."""
        self.secret, self.previous = other.secret, other.previous

    def mac(self, body: bytes) -> str:
        """The MAC that travels in ``Mas-Record-Mac``."""
        return _mac(self.secret, body)

    def verify(self, body: bytes, mac: str) -> bool:
        """Whether ``mac`` belongs to ``body``."""
        given = mac.encode("utf-8", "replace")
        return any(
            hmac.compare_digest(_mac(secret, body).encode(), given)
            for secret in (self.secret, *self.previous)
        )


def _mac(secret: bytes, body: bytes) -> str:
    return hmac.digest(secret, body, "sha256").hex()
