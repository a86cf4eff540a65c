"""The examples run as their READMEs say, as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.system import REPOSITORY, System, mas

HELPDESK = REPOSITORY / "examples" / "helpdesk"


def run(program: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_helpdesk(tmp_path: Path) -> None:
    """The two programs of the ancestor's README, with their imports and certificate paths changed."""
    shutil.copy(HELPDESK / "mas.yaml", tmp_path)
    system = System.up(tmp_path / ".mas", "--manifest", str(tmp_path / "mas.yaml"))
    try:
        certs = tmp_path / "certs"
        mas("certs", "agent", "helpdesk", "router", "--out", str(certs), "--folder", str(tmp_path / ".mas"))
        desk = run(HELPDESK / "desk.py", tmp_path)
        try:
            deadline = time.monotonic() + 30
            while True:
                router = run(HELPDESK / "router.py", tmp_path)
                told, _ = router.communicate(timeout=30)
                if router.returncode == 0 and "can answer questions: helpdesk" in told:
                    break
                assert time.monotonic() < deadline, told  # the desk may not be up yet
            assert "turning it off and on again" in told
            assert "My printer is silent." in told
        finally:
            desk.send_signal(signal.SIGTERM)
            output, _ = desk.communicate(timeout=30)
        assert desk.returncode == 0, output
    finally:
        system.down()


def test_demo() -> None:
    """``make demo``: tells its story, ends well, leaves nothing running."""
    before = own_processes()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "discovered: helpdesk",
        "answer 1 to",
        "answer 2 to",
        "started; state: answered=1 notes=1",
        "refused: AUTHZ_DENIED",
        "the audit of default is intact",
        "All of it worked",
    ):
        assert told in done.stdout, told
    assert own_processes() <= before


def own_processes() -> set[str]:
    """What runs of ours on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "mas-demo-" in command:
                found.add(entry.name)
    return found
