"""Decisions with their outcomes as CSV or JSON lines, for people and their tools.

Such a file does not verify; an export of the chain does (``export.py``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterable
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from broker_policy.audit.query import Answer
from broker_policy.printable import told

_COLUMNS = (
    *("index", "at", "message_id", "op", "sender", "target", "type", "size", "decision", "rule", "outcome"),
    *("policy_revision", "writer", "record", "position", "log_sequence", "commitment", "certificate"),
    *("by", "dead_letter", "marked", "hash"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet may take for the beginning of a formula, also in full width."""


class DecisionFormat(StrEnum):
    """How decisions are written."""

    CSV = "csv"
    JSONL = "jsonl"


async def write_decisions(decisions: AsyncIterable[Answer], path: Path, form: DecisionFormat) -> int:
    """Write ``decisions`` to ``path`` as they come, whole or not at all; returns how many.

    Raises:
        OSError: the file cannot be written. What else reading ``decisions`` raises.

    """
    partial = path.with_name(path.name + ".part")
    count = 0
    with partial.open("wb") as file:
        if form is DecisionFormat.CSV:
            file.write(_csv(_COLUMNS))
        async for answer in decisions:
            row = answer.row()
            file.write(csv_line(row) if form is DecisionFormat.CSV else orjson.dumps(row) + b"\n")
            count += 1
    partial.replace(path)
    return count


def csv_line(row: dict[str, Any]) -> bytes:
    """A decision as a line of CSV; what an agent chose cannot become a formula in a spreadsheet."""
    told_row = row | {"at": told(row["time"])}
    return _csv([_harmless(told_row[name]) for name in _COLUMNS])


def _harmless(cell: object) -> object:
    """A text that would be a formula, with an apostrophe before it."""
    if isinstance(cell, str) and cell.lstrip(" \u00a0\u200b\ufeff").startswith(_FORMULA):
        return f"'{cell}"
    return cell


def _csv(cells: Any) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().encode(errors="replace")
