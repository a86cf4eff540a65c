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


def test_a_library_does_without_what_it_is_started_without(tmp_path: Path) -> None:
    """Later it is there for whoever needs it."""
    (tmp_path / "a_library.py").write_text("")
    (tmp_path / "a_program.py").write_text("""
try:
    import a_library
except ImportError:
    print("without")

def main():
    import a_library
    print(a_library.__name__)
""")
    done = subprocess.run(
        [sys.executable, "-m", "mas_nats.starting", "--without", "a_library", "a_program"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["without", "a_library"], done.stderr


def test_what_is_imported_already_stays() -> None:
    try:
        with importing(without=("os",)):
            assert importlib.import_module("os") is os
        assert sys.modules["os"] is os
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_it_on() -> None:
    try:
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("no.such.module")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_mas_up_does_without_what_the_other_commands_do_without() -> None:
    """It imports what it runs only then, since who detaches has no use for it."""
    code = """
import asyncio, contextlib, sys
from broker_policy.cli import up
with contextlib.suppress(AttributeError):  # of no output
    asyncio.run(up._stay(None, None, None))
print("redis" in sys.modules, "opentelemetry.sdk.metrics" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
