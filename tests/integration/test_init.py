"""``mas init`` writes a project that works as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import running
from tests.system import REPOSITORY

FILES = {"mas.yaml", "agents.py", "test_agents.py", ".gitignore"}


def mas(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``mas`` in ``folder``, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "broker_policy.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAS_")},
    )


def test_the_three_commands_work_as_printed(tmp_path: Path) -> None:
    done = mas(tmp_path, "init", "project", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["written"]) == FILES
    folder = tmp_path / "project"
    up, run_agents, request = told["next"]
    assert (up, run_agents) == ("cd project && mas up --detach", "mas run")
    done = mas(folder, *up.removeprefix("cd project && mas ").split())
    assert done.returncode == 0, done.stderr
    try:
        with running(folder) as run:
            run.wait_line("Hello, visitor! You are number ", "visitor/1")
            asked = subprocess.run(
                request.replace("mas ", f"{sys.executable} -m broker_policy.cli ", 1),
                shell=True,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert asked.returncode == 0, asked.stderr
            assert json.loads(asked.stdout)["text"].startswith("Hello, Ada! You are number ")
            assert mas(folder, "down").returncode == 0  # the broker goes away, and comes back
            run.wait_line("is away; waiting for it")
            assert mas(folder, "up", "--detach").returncode == 0
            run.wait_line("the broker is back")
            run.wait_line("Hello, visitor! You are number ", "visitor/1")
            assert not run.of("crashed")
            assert run.stop() == 0
    finally:
        assert mas(folder, "down").returncode == 0


def test_its_test_passes_and_can_fail(tmp_path: Path) -> None:
    mas(tmp_path, "init")
    pytest_arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    passed = subprocess.run(pytest_arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert passed.returncode == 0, passed.stdout
    agents = tmp_path / "agents.py"
    agents.write_text(agents.read_text().replace("{self.greeting}, ", ""))
    failed = subprocess.run(pytest_arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 1


def test_it_is_typed(tmp_path: Path) -> None:
    mas(tmp_path, "init")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "agents.py", "test_agents.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", sorted(FILES - {".gitignore"}))
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    done = mas(tmp_path, "init")
    assert done.returncode == 1
    assert f"{name} exists: nothing was written" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_gitignore_stays_and_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n")
    done = mas(tmp_path, "init")
    assert done.returncode == 0
    assert "add .mas/ to it" in done.stderr
    assert (tmp_path / ".gitignore").read_text() == "*.log\n"
