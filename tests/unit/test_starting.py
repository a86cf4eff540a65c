"""Programs are imported without the garbage collector, and run with it."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mas_nats.starting import importing

PROGRAM = """
import gc, sys

WHILE_IMPORTED = gc.isenabled()

def main():
    print(WHILE_IMPORTED, gc.isenabled(), gc.get_freeze_count() > 0, *sys.argv[1:])
    return 3
"""


def test_a_program_is_imported_without_it_and_runs_with_it(tmp_path: Path) -> None:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mas_nats.starting", "a_program", "one", "--two"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["False", "True", "True", "one", "--two"]
    assert done.returncode == 3, done.stderr


def test_an_import_that_fails_leaves_it_on() -> None:
    try:
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("no.such.module")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
