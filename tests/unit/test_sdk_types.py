from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("program", ["sdk_user_code.py", "sdk_user_tests.py"])
def test_user_code_passes_mypy_strict(program: str):
    """What is right passes, and what is wrong is found: an ignore that is not needed is an error."""
    code = Path(__file__).with_name(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(code)],
        cwd=code.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
