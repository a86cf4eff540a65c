"""The tests that docs/testing.md shows, run as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.system import REPOSITORY

_CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


def run(folder: Path, *options: str) -> str:
    """Run what the page shows in ``folder``, with ``options`` for pytest; its output."""
    page = (REPOSITORY / "docs" / "testing.md").read_text()
    (folder / "conftest.py").write_text('pytest_plugins = ["mas_nats.testing.fixtures"]\n')
    (folder / "test_page.py").write_text("\n\n".join(_CODE.findall(page)))
    (folder / "pytest.ini").write_text(_SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
