"""What a run showed, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from tests.chaos.checker import FAULTS, Found
from tests.chaos.run import Outcome, Phase

_SETS = tuple(one.name for one in fields(Found))
_OF_DECISIONS = ("unsettled", "unknown", "gaps")
_COLUMNS = (
    "accepted",
    "handled",
    "dead",
    "updates",
    "lost",
    "unaudited",
    "unsettled",
    "duplicates",
    "restored",
    "gaps",
)


def document(outcomes: dict[str, Outcome], seed: int, seconds: float) -> dict[str, Any]:
    """Everything as JSON; ``outcomes`` by the name of the system (single, cluster)."""
    rows = [row for where, outcome in outcomes.items() for row in _rows(where, outcome)]
    total: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _SETS}
    return {
        **total,
        "chain_ok": all(outcome.evidence.intact for outcome in outcomes.values()),
        "ok": all(outcome.ok for outcome in outcomes.values()),
        "seed": seed,
        "seconds": seconds,
        "settled_after_seconds": {
            where: round(outcome.settled_after, 1) for where, outcome in outcomes.items()
        },
        "nemeses": rows,
    }


def _rows(where: str, outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {
            "nemesis": phase.nemesis,
            "system": where,
            "faults": len(phase.faults),
            **_counts(outcome, phase),
            "chain_ok": _chain_ok(outcome, phase),
            "recovered": not phase.stuck,
            "recovery_seconds": _most(phase.recovery),
            "drained_seconds": _most(phase.drained),
        }
        for phase in outcome.phases
    ]


def _counts(outcome: Outcome, phase: Phase) -> dict[str, int]:
    """Of what was first attempted, or updated, or decided in the time of ``phase``.

    What nobody attempted belongs to the last phase: it must not vanish from the sums.
    """
    last = phase is outcome.phases[-1]
    counts: dict[str, int] = {}
    for name in _SETS:
        found: Iterable[str] = getattr(outcome.found, name)
        if name in _OF_DECISIONS:
            times = (outcome.audit.by_name[one].time for one in found)
            counts[name] = sum(phase.has(when) for when in times)
        else:
            begun = map(outcome.history.begun, found)
            counts[name] = sum(last if when is None else phase.has(when) for when in begun)
    return counts


def _chain_ok(outcome: Outcome, phase: Phase) -> bool:
    """Whether no finding is about an entry of that time; a finding without a place counts everywhere."""
    if outcome.evidence.intact:
        return True
    times = [each.time for each in outcome.audit.decisions]
    inside = [index for index, when in enumerate(times) if phase.has(when)]
    share = outcome.evidence.entries / max(1, len(times))  # entries are not decisions: a rough place
    places = [finding["index"] / share for finding in outcome.evidence.findings]
    return not any(place == 0 or (inside and inside[0] <= place <= inside[-1]) for place in places)


def _most(seconds: list[float]) -> float | None:
    return round(max(seconds), 2) if seconds else None


def table(report: dict[str, Any]) -> str:
    """The rows as a Markdown table, with the sums in the last one."""
    head = ["nemesis", "faults", *_COLUMNS, "chain", "recovery s", "drained s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for row in (*report["nemeses"], {"nemesis": "**all**", **report}):
        cells = [row["nemesis"] + ("" if row.get("system", "single") == "single" else " (cluster)")]
        cells += [str(row.get("faults", ""))]
        cells += [f"{row[name]:,}" for name in _COLUMNS]
        cells += ["ok" if row["chain_ok"] else "BROKEN"]
        cells += [_seconds(row, "recovery_seconds"), _seconds(row, "drained_seconds")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return "never" if not row["recovered"] else f"{row[name]:.2f}"


def faults(outcomes: dict[str, Outcome], *, shown: int = 5) -> list[str]:
    """A line for each kind of fault, with some of the ids."""
    lines: list[str] = []
    for where, outcome in outcomes.items():
        for kind in FAULTS:
            if ids := sorted(getattr(outcome.found, kind)):
                lines.append(f"{where}: {len(ids)} {kind}: {', '.join(ids[:shown])}")
        lines += [
            f"{where}: audit: {finding['kind']}: {finding['text']}"
            for finding in outcome.evidence.findings[:shown]
        ]
        lines += [f"{where}: not recovered: {phase.nemesis}" for phase in outcome.phases if phase.stuck]
    return lines
