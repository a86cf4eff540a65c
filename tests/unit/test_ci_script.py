"""``.ci/tests``: what failed is repeated alone, decides, and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / ".ci" / "tests"

LEAN = [word for plugin in ("asyncio", "anyio", "hypothesispytest") for word in ("-p", f"no:{plugin}")]

SUITE = """
import os, pathlib, pytest

def begun_before(name):
    here = pathlib.Path(name)
    there = here.exists()
    here.touch()
    return there

def test_sound():
    assert "PYTEST_XDIST_WORKER" not in os.environ or not begun_before("sound"), "repeated though it passed"

@pytest.mark.skipif("together" not in {failing!r}, reason="not in this run")
def test_together():
    assert {broken!r} != "together" and begun_before("together")

@pytest.mark.alone
def test_alone():
    if "crash" in {failing!r}:
        os._exit(1)
    assert "alone" not in {failing!r} or {broken!r} != "alone" and begun_before("alone")

@pytest.mark.containers
def test_containers():
    begun_before("containers")
"""


def run(folder: Path, failing: str = "", broken: str = "") -> subprocess.CompletedProcess[str]:
    """Run a suite in which ``failing`` fails at first, and ``broken`` always."""
    (folder / "test_suite.py").write_text(SUITE.format(failing=failing, broken=broken))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  alone\n  cluster\n  containers\n")
    return subprocess.run(
        ["sh", str(SCRIPT), sys.executable, "2", "-q", *LEAN],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def test_what_passes_alone_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, failing="together, alone")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "FAILED, passed when repeated alone: test_suite.py::test_together",
        "FAILED, passed when repeated alone: test_suite.py::test_alone",
    ]
    assert (tmp_path / "containers").exists()


def test_what_fails_again_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, failing="together", broken="together")
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == "FAILED, and not all passed alone: test_suite.py::test_together"
    assert not (tmp_path / "containers").exists()


def test_a_run_that_ends_without_saying_what_failed_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, failing="crash")
    assert done.returncode == 1, done.stdout
    assert not (tmp_path / "containers").exists()


def test_nothing_is_repeated_where_nothing_failed(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "repeat" not in done.stdout
    assert (tmp_path / "containers").exists()
