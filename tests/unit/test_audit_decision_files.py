"""Decisions as CSV and JSON lines; what an agent chose is no formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import orjson
import pytest

from broker_policy.audit import entry
from broker_policy.audit.decision_files import DecisionFormat, csv_line, write_decisions
from broker_policy.audit.query import Answer
from broker_policy.audit.record import Record, RecordKind, Way
from tests.audit_log import NAMESPACE, line

RECORD = Record(NAMESPACE, "w1i", 2, "", RecordKind.DECISIONS, 1, 3)
HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1,2)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "\ufeff=1",
    "\uff1d1",
]


def answer(index: int = 1, **changes: object) -> Answer:
    made = entry.decision(index, 5, RECORD, 0, line(Way.NONE, **changes), 0, "")
    return Answer(index, made, "r", "ab" * 32)


async def some(*answers_: Answer):
    for each in answers_:
        yield each


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["message_id", "type", "target", "rule", "by"])
def test_a_cell_is_no_formula(value, name):
    [row] = csv.reader(io.StringIO(csv_line(answer(**{name: value}).row()).decode(), newline=""))
    assert f"'{value}" in row
    assert not any(cell.lstrip(" \ufeff\t\r\n").startswith(("=", "+", "-", "@", "\uff1d")) for cell in row)


def test_harmless_cells_stay_as_they_are():
    """The control: what is no formula is not changed, numbers are numbers, a quote does not break a line."""
    [row] = csv.reader(io.StringIO(csv_line(answer(7, message_id='a,"b"-c=d').row()).decode(), newline=""))
    assert row[0] == "7"
    assert row[2] == 'a,"b"-c=d'


async def test_both_formats_hold_the_same(tmp_path: Path):
    answers_ = [answer(1), answer(2, type="a\nb")]
    assert await write_decisions(some(*answers_), tmp_path / "a.csv", DecisionFormat.CSV) == 2
    assert await write_decisions(some(*answers_), tmp_path / "a.jsonl", DecisionFormat.JSONL) == 2
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    lines = [orjson.loads(raw) for raw in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    assert [row["message_id"] for row in cells] == [row["message_id"] for row in lines]
    assert [row["type"] for row in cells] == ["task", "a\nb"]
    assert lines == [each.row() for each in answers_]
    assert {row["outcome"] for row in cells} == {"refused"}


async def test_a_file_is_whole_or_not_there(tmp_path: Path):
    async def broken():
        yield answer()
        raise OSError("gone")

    (tmp_path / "a.csv").write_text("before")
    with pytest.raises(OSError, match="gone"):
        await write_decisions(broken(), tmp_path / "a.csv", DecisionFormat.CSV)
    assert (tmp_path / "a.csv").read_text() == "before"
