"""Every fault of the ancestor is answered by tests that are there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.parity.faults import FAULTS, Fault

TESTS = Path(__file__).parent.parent


@cache
def _tests_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}")
def test_its_tests_are_there(fault: Fault):
    assert fault.shown_by or fault.missing
    for shown in fault.shown_by:
        file, _, name = shown.partition("::")
        assert (TESTS / file).is_file(), shown
        assert name in _tests_of(TESTS / file), shown


def test_each_of_the_table_is_here():
    assert [fault.number for fault in FAULTS] == list(range(1, 22))


def test_the_control_a_test_that_is_not_there_is_noticed():
    assert "test_no_such_thing" not in _tests_of(TESTS / "contract/test_messaging.py")
