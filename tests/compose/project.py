"""The real ``compose.yaml`` on a real container engine, as a project that nothing else uses."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from testcontainers.compose import DockerCompose

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds for what happens by itself, on a busy machine."""
_COMMAND = 300.0
_LABEL = "com.docker.compose.project"


def missing() -> str:
    """Why no containers can be started here; "" when they can."""
    if shutil.which("docker") is None:
        return "no container engine: there is no docker command in the PATH"
    for command in (
        ["docker", "version", "--format", "{{.Server.Version}}"],
        ["docker", "compose", "version"],
    ):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if found.returncode:
            said = (found.stderr or found.stdout).strip().splitlines()
            return f"no container engine answers: {' '.join(command)}: {said[-1] if said else 'failed'}"
    return ""


class Project(DockerCompose):
    """One bringing-up of ``compose.yaml``, with ports that are free and a name of its own."""

    def __init__(self, folder: Path, *profiles: str) -> None:
        self.name = f"mas-test-{secrets.token_hex(4)}"
        settings = folder / "settings.env"
        settings.write_text(f"COMPOSE_PROJECT_NAME={self.name}\nMAS_PORT=0\nMAS_PORT_2=0\nMAS_PORT_3=0\n")
        super().__init__(context=REPOSITORY, env_file=str(settings), profiles=list(profiles))

    def compose(
        self, *arguments: str, check: bool = True, version: str = "test", **streams: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose`` with these arguments, and our images of ``version``."""
        return _run([*self.docker_compose_command(), *arguments], check=check, version=version, **streams)

    def engine(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``docker`` with these arguments."""
        return _run(["docker", *arguments])

    def up(self, *options: str) -> None:
        """Bring everything up and wait until it is healthy; what containers said when it does not get so."""
        done = self.compose("up", "--detach", "--wait", "--wait-timeout", "240", *options, check=False)
        if done.returncode:
            logs = self.compose("logs", "--no-color", "--tail", "30", check=False).stdout
            raise AssertionError(f"docker compose up: {done.stderr[-2000:]}\n{logs[-6000:]}")

    def mas(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm mas`` with these arguments."""
        return self.compose("run", "--rm", "-T", "mas", *arguments, check=check)

    def inside(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a running container of ``service``."""
        return self.compose("exec", "-T", service, *command, check=check)

    def logs(self, service: str) -> str:
        """What all containers of ``service`` have said."""
        return self.compose("logs", "--no-color", "--no-log-prefix", service).stdout

    def containers(self) -> dict[str, list[dict[str, Any]]]:
        """What the engine says of each container (``docker inspect``), by service, the ended ones too."""
        ids = self.compose("ps", "--all", "--quiet").stdout.split()
        found: dict[str, list[dict[str, Any]]] = {}
        for each in json.loads(_run(["docker", "inspect", *ids]).stdout) if ids else ():
            found.setdefault(each["Config"]["Labels"]["com.docker.compose.service"], []).append(each)
        return found

    def left(self) -> list[str]:
        """Containers, networks and volumes of this project."""
        mine = ["--filter", f"label={_LABEL}={self.name}", "--quiet"]
        kinds = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        return [each for kind in kinds for each in _run(["docker", *kind, *mine]).stdout.split()]

    def down(self) -> None:
        """``docker compose down --volumes``."""
        self.compose("down", "--volumes", "--timeout", "10")

    def answers(self) -> int:
        """How many questions of the router the help desk has answered."""
        return self.logs("router").count("helpdesk answered:")

    def more_answers(self, more: int = 2) -> None:
        """Wait until so many further questions are answered."""
        before = self.answers()
        until(lambda: self.answers() >= before + more, f"{more} more answers", self.logs, "router")


def until(
    done: Callable[[], object], what: str, said: Callable[[str], str] | None = None, service: str = ""
) -> None:
    """Wait until ``done``; else fail with the end of what ``service`` said."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            end = said(service)[-2000:] if said else ""
            raise AssertionError(f"no {what} within {PATIENCE:g} s\n{end}")
        time.sleep(0.5)


def _run(
    command: Sequence[str], *, check: bool = True, version: str = "test", **streams: Any
) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    done = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        text=True,
        timeout=_COMMAND,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "MAS_VERSION": version},
        **streams,
    )
    if check and done.returncode:
        said = f"{done.stderr[-2000:]}{(done.stdout or '')[-2000:]}"
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done
