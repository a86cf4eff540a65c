"""One shell that does what a page shows, and says where it went otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.pages.shown import Command, File

_STEP = "@@ step"
_PAGE = 240.0
"""Seconds for one page."""


def run(
    folder: Path,
    steps: Iterable[File | Command],
    *,
    before: str = "",
    instead: Mapping[str, str] | None = None,
    fails: Mapping[str, int] | None = None,
) -> str:
    """Do ``steps`` in ``folder``, after the shell lines ``before``; all that was printed.

    ``instead`` gives texts for what a page cannot know, ``fails`` the exit status of commands,
    where the page does not show an error.
    """
    script = [
        f"exec 2>&1; set -u; cd '{folder}'",
        "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT",  # they hold the output open
        before,
        f"[ $? -eq 0 ] || {{ echo '{_STEP} before'; exit 1; }}",
    ]
    for number, step in enumerate(steps):
        if isinstance(step, File):
            text = f"cat > '{step.name}' <<'@@END'\n{_patched(step.text, instead)}@@END"
            script += [f"mkdir -p \"$(dirname '{step.name}')\"", text]
            continue
        wanted = (fails or {}).get(step.line.partition("#")[0].strip(), 0)
        check = "[ $code -ne 0 ]" if step.fails else f"[ $code -eq {wanted} ]"
        script += [
            f"echo '{_STEP} {number}: '{_quoted(step.line)}",
            f"{_patched(step.line, instead)}\ncode=$?",
            f'{check} || {{ echo "{_STEP} {number} ended with $code"; exit 1; }}',
        ]
    script.append("exit 0")
    return _shell("\n".join(script), folder)


_BIN = Path(sys.executable).parent
PATH = os.pathsep.join((str(_BIN), str(_BIN.parent / "mas-nats" / "bin"), os.environ["PATH"]))
"""Where the shell looks: our own commands first."""


def _shell(script: str, folder: Path) -> str:
    env = {**os.environ, "PATH": PATH, "COLUMNS": "160", "XDG_CONFIG_HOME": str(folder / "config")}
    env.pop("MAS_RUNNER_CONFIG_FILE", None)
    with subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    ) as shell:
        try:
            printed, _ = shell.communicate(timeout=_PAGE)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            printed, _ = shell.communicate()
            printed += f"\n{_STEP}: not done within {_PAGE:g} s"
            raise AssertionError(printed) from None
    assert shell.returncode == 0, printed
    return printed


def _patched(text: str, instead: Mapping[str, str] | None) -> str:
    for old, new in (instead or {}).items():
        text = text.replace(old, new)
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
