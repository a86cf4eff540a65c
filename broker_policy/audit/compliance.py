"""What the audit says of a range of time: for whoever has to account for a system."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from broker_policy.audit.candidates import Span
from broker_policy.audit.entry import Entry, refuses
from broker_policy.audit.query import OUTCOME_NAMES
from broker_policy.audit.segments import Past
from broker_policy.audit.store import PAGE, Store, StoredEntry
from broker_policy.audit.time_span import span_of

_MOST = 1000
"""Acts, alarms and losses that are listed one by one; all are counted."""
_DLP = "dlp:"
_MORE = "(more)"
"""Stands for the types beyond those that a decision names."""


@dataclass(slots=True)
class Compliance:
    """A report on one namespace from ``since`` to ``until`` (unix milliseconds)."""

    namespace: str
    since: int
    until: int
    not_counted: int = 0  # up to this entry some of the range are in segments, and were not looked at
    total: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    refused_by_rule: Counter[str] = field(default_factory=Counter)
    refused_by_sender: Counter[str] = field(default_factory=Counter)
    dlp: Counter[tuple[str, str]] = field(default_factory=Counter)  # type of finding, decision
    revisions: dict[int, int] = field(default_factory=dict)  # revision -> when it was seen first
    acts: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of acts, alarms, losses

    def add_decision(self, entry: Entry, letter: str) -> None:
        """One decision of the range, whose outcome is ``letter`` by now."""
        self.total += 1
        self.decisions[entry["d"]] += 1
        self.outcomes[OUTCOME_NAMES.get(letter, "unknown")] += 1
        self.revisions[entry["v"]] = min(self.revisions.get(entry["v"], entry["at"]), entry["at"])
        if refuses(entry):
            self.refused_by_rule[entry["r"] or entry["d"]] += 1
            self.refused_by_sender[entry["f"]] += 1
        if entry["r"].startswith(_DLP):
            for found in entry["r"].removeprefix(_DLP).split(","):
                self.dlp[_MORE if found.startswith("+") else found, entry["d"]] += 1
        if by := entry.get("b"):
            act = {"by": by, "op": entry["o"], "sender": entry["f"], "target": entry["t"]}
            self._list("acts", self.acts, entry, act | {"message_id": entry["id"], "decision": entry["d"]})

    def add_alarm(self, entry: Entry) -> None:
        """An alarm of the projector about the log."""
        row = {"what": entry["e"], "writer": entry["w"], "first": entry["n"], "last": entry["to"]}
        self._list("alarms", self.alarms, entry, row)

    def add_loss(self, entry: Entry) -> None:
        """A loss of entries that somebody accepted."""
        self._list(
            "losses",
            self.losses,
            entry,
            {"first": entry["n"], "last": entry["to"], "reason": entry["r"]},
        )

    def _list(self, name: str, rows: list[dict[str, Any]], entry: Entry, row: dict[str, Any]) -> None:
        self.counts[name] += 1
        if len(rows) < _MOST:
            rows.append({"index": entry["i"], "time": entry["at"], **row})

    def document(self) -> dict[str, Any]:
        """As JSON."""
        dlp: dict[str, dict[str, int]] = {}
        for (found, decision), count in sorted(self.dlp.items()):
            dlp.setdefault(found, {})[decision] = count
        return {
            "namespace": self.namespace,
            "from": self.since,
            "to": self.until,
            "not_counted_up_to": self.not_counted,
            "decisions": self.total,
            "by_decision": dict(self.decisions.most_common()),
            "by_outcome": dict(self.outcomes.most_common()),
            "dead_letters": self.outcomes["dead"],
            "expired": self.outcomes["expired"],
            "unknown": self.outcomes["unknown"],
            "unsettled": self.outcomes["unsettled"],
            "refusals": sum(self.refused_by_rule.values()),
            "refusals_by_rule": dict(self.refused_by_rule.most_common()),
            "refusals_by_sender": dict(self.refused_by_sender.most_common()),
            "dlp_findings": dlp,
            "policy_revisions": [
                {"revision": revision, "first_seen": time}
                for revision, time in sorted(self.revisions.items())
            ],
            "operators_acts": self.acts,
            "alarms": self.alarms,
            "accepted_losses": self.losses,
            "counts": {name: self.counts[name] for name in ("acts", "alarms", "losses")},
        }


async def compliance(store: Store, since: int, until: int, past: Past | None = None) -> Compliance:
    """Read the range and count, in ``past`` what left Redis; without it the report says up to where.

    Raises:
        SegmentBroken: a segment is missing or altered.
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    report = Compliance(store.layout.namespace, since, until)
    removed = (await store.removed()).index
    if past is None:
        report.not_counted = await _not_counted(store, removed, since, until)
    else:
        for seal in past.overlapping(1, removed, since, until):
            rows = [row for row in past.segments.read(seal) if row.index <= removed]
            for first in range(0, len(rows), PAGE):
                await _count(store, report, rows[first : first + PAGE])
    whole = Span(removed + 1, (await store.head()).index)
    span = await span_of(store, whole, since, until)
    last = await _last_written(store, span.last, whole.last)
    span = Span(await _first_written(store, span.first, since), last)
    async for page in _pages(store, span):
        await _count(store, report, page)
    return report


async def _not_counted(store: Store, removed: int, since: int, until: int) -> int:
    """The last entry that left Redis and may be of the range; 0 where there is none."""
    seals = [signed.seal for signed in await store.seals() if signed.seal.first <= removed]
    if max((seal.last for seal in seals), default=0) < removed:
        return removed  # nothing says of what time they were
    within = (seal.last for seal in seals if seal.youngest >= since and seal.oldest <= until)
    return min(max(within, default=0), removed)


async def _count(store: Store, report: Compliance, page: list[StoredEntry]) -> None:
    letters = await store.outcomes_at([stored.index for stored in page])
    for stored, letter in zip(page, letters, strict=True):
        entry = stored.entry()
        if not report.since <= entry["at"] <= report.until:
            continue
        if entry["k"] == "d":
            report.add_decision(entry, letter)
        elif entry["k"] == "a":
            report.add_alarm(entry)
        elif entry["k"] == "l":
            report.add_loss(entry)


async def _first_written(store: Store, first: int, since: int) -> int:
    """From where on entries that are no decisions were written since ``since``.

    They bear the time of writing, which only grows along the chain. After an outage of Redis they stand
    beside decisions that are older by its length.
    """
    while first > 1:
        low = max(first - PAGE, 1)
        page = await store.between(f"{low}-0", f"({first}-0", PAGE)
        written = [stored.index for stored in page if _written(stored, since)]
        if not written:
            return first
        first = written[0]
        if any(stored.index < first and stored.entry()["k"] != "d" for stored in page):
            return first
    return first


async def _last_written(store: Store, last: int, end: int) -> int:
    """The last entry before the next decision: a span says nothing of those that are none."""
    while last < end:
        page = await store.between(f"{last + 1}-0", f"{end}-0", PAGE)
        if not page:
            return last
        for stored in page:
            if stored.entry()["k"] == "d":
                return last
            last = stored.index
    return last


def _written(stored: StoredEntry, since: int) -> bool:
    entry = stored.entry()
    return bool(entry["k"] != "d" and entry["at"] >= since)


async def _pages(store: Store, span: Span) -> AsyncIterator[list[StoredEntry]]:
    first = span.first
    while first <= span.last:
        page = await store.between(f"{first}-0", f"{span.last}-0", PAGE)
        if not page:
            return
        yield page
        first = page[-1].index + 1
