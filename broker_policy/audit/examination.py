"""Examining a chain entry by entry, wherever it comes from.

Memory does not grow with the chain's length, but for one byte an entry: its outcome.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import orjson

from broker_policy.audit import chain
from broker_policy.audit.checkpoint import Loss, SignedCheckpoint
from broker_policy.audit.entry import (
    NOT_A_DECISION,
    UNSETTLED,
    Entry,
    first_outcome,
    index_names,
    unranged,
)
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.layout import id_place
from broker_policy.audit.store import StoredEntry

_NO_LETTER = b"\0"


@dataclass(slots=True)
class Tally:
    """Count and digest of what an index must list."""

    count: int = 0
    digest: int = 0

    def add(self, index: int, fragment: str = "") -> None:
        """One more; the order does not matter."""
        self.count += 1
        raw = hashlib.blake2b(f"{index} {fragment}".encode(), digest_size=8).digest()
        self.digest = (self.digest + int.from_bytes(raw, "big")) % (1 << 64)


@dataclass(slots=True)
class _Held:
    """An entry that waits for the next one: only then it is known whether it is alone out of its place."""

    stored: StoredEntry
    place: int
    entry: Entry | None
    shift: int  # its own index minus its place


class Examination:
    """Feed it entries and checkpoints in order, then call ``finish``. Results are in ``report``.

    ``numbered``: the stored identifiers are indexes (Redis), so a hole shows by itself; else (a file) the
    place of an entry is its line.
    """

    def __init__(self, namespace: str, keys: CheckpointKeys, *, numbered: bool = True) -> None:
        self.report = Report(namespace)
        self.index = 0
        self.hash = ""
        self.letters = bytearray(_NO_LETTER)
        self.lists: dict[str, Tally] = {}
        self.shards: dict[int, Tally] = {}
        self.unsettled: dict[int, int] = {}
        self.keys = keys
        self._numbered = numbered
        self._genesis = chain.genesis(namespace)
        self._previous: bytes | None = self._genesis
        self._held: _Held | None = None
        self._place = 0
        self._shift = 0
        self._displaced: dict[int, int] = {}
        self._rewritten = False
        self.indexed_after = 0
        """Entries up to here are in segments; no index in Redis lists them."""
        self._begun, self._begun_after = 0, ""

    def begin(self, index: int, digest: bytes) -> None:
        """Begin after entry ``index``: those up to it were sealed, and are not given, or are broken."""
        self.letters.extend(_NO_LETTER * (index - len(self.letters) + 1))
        self.index, self.hash, self._previous = index, digest.hex(), digest or None
        self._place = self._begun = index
        self._begun_after = self.hash

    # -- entries -------------------------------------------------------------------------------------
    def add(self, stored: StoredEntry) -> None:
        """The next entry."""
        self.report.entries += 1
        if self._numbered and not stored.identifier.endswith("-0"):
            self.report.add(
                FindingKind.INSERTED,
                stored.index,
                f"an entry stands at {stored.identifier}, between two indexes",
            )
            return
        place = stored.index if self._numbered else self._place + 1
        self._place = place
        entry = _read(stored.body)
        own = entry.get("i") if entry is not None else None
        shift = own - place if isinstance(own, int) else self._shift
        held = _Held(stored, place, entry, shift)
        if self._held is not None:
            self._settle(self._held, following=held)
        self._held = held

    def flush(self) -> None:
        """There is no further entry, for now."""
        if self._held is not None:
            self._settle(self._held, following=None)
            self._held = None
        for place, own in self._displaced.items():
            self.report.add(FindingKind.CHANGED, place, f"entry {place} says it is entry {own}")
        self._displaced.clear()

    def _settle(self, held: _Held, following: _Held | None) -> None:
        self._find_hole(held)
        self.index, self.hash = held.place, held.stored.hash
        moved = held.shift - self._shift
        if moved and following is not None and following.shift == held.shift:
            self._shift = held.shift
            self._report_shift(held, moved)
        elif moved:
            self._report_displaced(held)
            self._previous = None
            return
        self._check_link(held)
        if held.entry is not None:
            self._count(held.place, held.entry)

    def _find_hole(self, held: _Held) -> None:
        missing = held.place - self.index - 1
        if missing > 0:
            first, last = self.index + 1, held.place - 1
            self.report.add(FindingKind.REMOVED, first, f"{missing} entries are missing", last=last)
            self.letters.extend(_NO_LETTER * missing)
            self._previous = None

    def _report_shift(self, held: _Held, moved: int) -> None:
        if moved > 0:
            first = held.place + self._shift - moved
            text = f"{moved} entries are missing before {held.place + self._shift}"
            self.report.add(FindingKind.REMOVED, first, text, last=first + moved - 1)
        else:
            self.report.add(
                FindingKind.INSERTED,
                held.place + moved,
                f"{-moved} entries were put in before what was entry {held.place + self._shift}",
                last=held.place - 1,
            )
        self._previous = None

    def _report_displaced(self, held: _Held) -> None:
        own = held.place + held.shift
        self.letters.extend(_NO_LETTER)
        if self._displaced.pop(own, None) == held.place:
            self.report.add(
                FindingKind.SWAPPED, own, f"entries {own} and {held.place} are swapped", last=held.place
            )
        elif own > held.place and len(self._displaced) < 10_000:
            self._displaced[held.place] = own
        else:
            self.report.add(FindingKind.CHANGED, held.place, f"entry {held.place} says it is entry {own}")

    def _check_link(self, held: _Held) -> None:
        stored = held.stored
        canonical = held.entry is not None and _canonical(held.entry) == stored.body
        expected = None if self._previous is None else chain.link(self._previous, stored.body).hex()
        if not canonical or expected not in (None, stored.hash):
            self.report.add(
                FindingKind.CHANGED,
                held.place,
                f"entry {held.place} is not what was hashed, or does not follow the one before it",
            )
        self._previous = _hash(stored.hash)

    def _count(self, index: int, entry: Entry) -> None:
        letter = NOT_A_DECISION
        try:
            kind = entry["k"]
            if kind == "d":
                letter = first_outcome(entry)
                self._count_decision(index, entry, letter)
            elif kind == "o":
                self._count_outcome(entry)
            elif kind == "a":
                self._count_alarm(index, entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.report.add(FindingKind.CHANGED, index, f"entry {index} is not an entry")
        self.letters.extend(letter.encode())

    def _count_decision(self, index: int, entry: Entry, letter: str) -> None:
        self.report.decisions += 1
        if index > self.indexed_after:
            for name in index_names(entry):
                self.lists.setdefault(name, Tally()).add(index)
            shard, fragment = id_place(entry["id"])
            self.shards.setdefault(shard, Tally()).add(index, fragment)
        if letter == UNSETTLED:
            self.unsettled[index] = entry["at"]

    def _count_outcome(self, entry: Entry) -> None:
        letter = entry["o"].encode()
        for index in unranged(entry["x"]):
            if 0 < index < len(self.letters):
                self.letters[index : index + 1] = letter
            self.unsettled.pop(index, None)

    def _count_alarm(self, index: int, entry: Entry) -> None:
        what, writer, first, last = entry["e"], entry["w"], entry["n"], entry["to"]
        text = f"log: {what}, writer {writer}, records {first} to {last}, near log sequence {entry['s']}"
        self.report.add(FindingKind.ALARM, index, text)

    # -- checkpoints -----------------------------------------------------------------------------------
    def checkpoint(self, signed: SignedCheckpoint) -> None:
        """A checkpoint whose entry was just added, or must have been before, or will never be."""
        checkpoint = signed.checkpoint
        self.report.checkpoints += 1
        if checkpoint.namespace != self.report.namespace or not self.keys.signed(signed):
            self.report.add(
                FindingKind.BAD_CHECKPOINT,
                checkpoint.index,
                f"checkpoint {checkpoint.index} is not signed by the key that was valid there",
            )
            return
        if checkpoint.index < self._begun:
            if checkpoint.lost is not None and self.keys.accepted(signed):
                self._accept(checkpoint.index, checkpoint.lost)
            return  # of entries that are not given; a seal vouches for them
        at, digest = self.index, self.hash
        if checkpoint.index == self._begun:  # the last entry that is not given, and the next one may be here
            at, digest = self._begun, self._begun_after
        elif self._held is not None:
            at, digest = self._held.place, self._held.stored.hash
        if checkpoint.index > at:
            self.report.add(
                FindingKind.CUT,
                at + 1,
                f"entry {checkpoint.index} was signed, but the chain ends at {at}",
                last=checkpoint.index,
            )
        elif checkpoint.index < at or checkpoint.hash != digest:
            self.report.add(
                FindingKind.REWRITTEN,
                checkpoint.index,
                f"entry {checkpoint.index} is not the one that was signed",
            )
            self._rewritten = True
        elif not self._rewritten:
            if checkpoint.lost is not None and self.keys.accepted(signed):
                self._accept(checkpoint.index, checkpoint.lost)
            self.report.signed_index, self.report.signed_time = checkpoint.index, checkpoint.time

    def _accept(self, index: int, lost: Loss) -> None:
        """What the projector found in between is part of that loss."""
        known = [
            finding
            for finding in self.report.findings
            if finding.kind is FindingKind.ALARM and lost.first <= finding.index < index
        ]
        self.report.findings = [finding for finding in self.report.findings if finding not in known]
        self.report.losses.append(
            {"first": lost.first, "last": lost.last, "reason": lost.reason, "alarms": len(known)}
        )

    def end_at(self, index: int, digest: str, last: int) -> None:
        """The chain says that it ends at ``index`` with ``digest``; its last entry is ``last``."""
        add = self.report.add
        if last < index:
            add(FindingKind.CUT, last + 1, f"the chain ends at {last} instead of {index}", last=index)
        elif last > index:
            add(FindingKind.HEAD, index, f"the head is entry {index}, but there are {last}", last=last)
        elif self.hash and self.hash != digest:
            add(FindingKind.HEAD, index, "the head's hash is not that of the last entry")

    def find_unsettled(self, before: int) -> None:
        """Report decisions from before ``before`` (unix milliseconds) that still have no outcome."""
        for index, time in self.unsettled.items():
            if time < before:
                self.report.add(FindingKind.UNSETTLED, index, f"decision {index} has no outcome")

    def count_outcomes(self) -> None:
        """Count the outcomes for the report."""
        for letter in set(self.letters) - {0, ord(NOT_A_DECISION)}:
            self.report.outcomes[chr(letter)] = self.letters.count(letter)


def _read(body: bytes) -> Entry | None:
    try:
        entry = orjson.loads(body)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _canonical(entry: Entry) -> bytes:
    try:
        return chain.canonical(entry)
    except TypeError:
        return b""


def _hash(text: str) -> bytes | None:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return None
    return raw if len(raw) == chain.HASH_BYTES else None
