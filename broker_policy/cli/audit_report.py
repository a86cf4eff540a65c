"""``mas audit report`` in words: sections of lines, as text or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from broker_policy.audit.waiting import Waiting
from broker_policy.printable import printable, told

_SHOWN = 50
_WIDE = 200
Section = tuple[str, list[tuple[str, str]]]


class ReportFormat(StrEnum):
    """How a report is printed."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


def text(document: Mapping[str, Any]) -> str:
    """The report as plain text."""
    lines = [_title(document)]
    for title, rows in _sections(document):
        lines += ["", title]
        wide = max((len(name) for name, _ in rows), default=0)
        lines += [f"  {name:<{wide}}  {value}" for name, value in rows] or ["  none"]
    return "\n".join(lines)


def markdown(document: Mapping[str, Any]) -> str:
    """The report as Markdown; what agents and operators chose cannot add markup."""
    lines = [f"# {_title(document)}"]
    for title, rows in _sections(document):
        lines += ["", f"## {title}", ""]
        if rows:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows]
        else:
            lines.append("None.")
    return "\n".join(lines)


def _title(document: Mapping[str, Any]) -> str:
    return f"Audit of {document['namespace']}, {told(document['from'])} to {told(document['to'])}"


def _sections(document: Mapping[str, Any]) -> Iterator[Section]:
    yield "Chain", [*_chain(document["verification"]), *_not_counted(document)]
    keys = ("decisions", "refusals", "dead_letters", "expired", "unknown", "unsettled")
    yield "Totals", [(name.replace("_", " "), str(document[name])) for name in keys]
    yield "Decisions", _counts(document["by_decision"])
    yield "Outcomes, as of now", _counts(document["by_outcome"])
    yield "Refusals by rule", _counts(document["refusals_by_rule"])
    yield "Refusals by sender", _counts(document["refusals_by_sender"])
    findings = document["dlp_findings"].items()
    yield "Data-loss prevention, findings by type", [(name, _joined(counts)) for name, counts in findings]
    revisions = document["policy_revisions"]
    yield "Policy revisions", [(str(r["revision"]), f"since {told(r['first_seen'])}") for r in revisions]
    yield "Acts of operators", _rows(document, "operators_acts", "acts")
    yield "Alarms", _rows(document, "alarms", "alarms")
    yield "Accepted losses", _rows(document, "accepted_losses", "losses")


def _chain(verification: Mapping[str, Any]) -> list[tuple[str, str]]:
    signed = "no checkpoint covers any entry"
    if index := verification["signed_index"]:
        signed = f"up to entry {index}, at {told(verification['signed_time'])}"
    count = len(verification["findings"]) + verification["more_findings"]
    verified = "yes" if verification["intact"] else f"NO, {count} findings: see mas audit verify"
    if unexamined := verification["unexamined_segments"]:
        verified += f"; not examined: sealed segments, up to entry {unexamined[-1]['last']}"
    told_of = [("verified", verified), ("entries", str(verification["entries"])), ("signed", signed)]
    if (waits := verification.get("waiting")) and waits["records"]:
        told_of.append(("not in it yet", str(Waiting(waits["records"], waits["oldest_seconds"]))))
    return told_of


def _not_counted(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not (last := document["not_counted_up_to"]):
        return []
    return [("NOT COUNTED", f"entries up to {last}, which are in sealed segments: give --segments")]


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    shown = [(printable(name, _WIDE), str(count)) for name, count in list(counts.items())[:_SHOWN]]
    return shown + _more(len(counts))


def _rows(document: Mapping[str, Any], name: str, counted: str) -> list[tuple[str, str]]:
    rows = [
        (
            f"{row['index']} {told(row['time'])}",
            _joined({key: value for key, value in row.items() if key not in ("index", "time")}),
        )
        for row in document[name][:_SHOWN]
    ]
    return rows + _more(document["counts"][counted])


def _more(count: int) -> list[tuple[str, str]]:
    return [(f"and {count - _SHOWN} more", "see --format json")] if count > _SHOWN else []


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {printable(str(value), _WIDE)}" for name, value in values.items())


def _escaped(value: str) -> str:
    out = value.replace("&", "&amp;").replace("<", "&lt;")
    for each in "\\|`*_[]":
        out = out.replace(each, f"\\{each}")
    return out
