"""``mas sidecar`` as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from tests.sidecar.conftest import Town
from tests.system import REPOSITORY


class Process:
    """One sidecar; ``proxy`` is what it printed."""

    def __init__(self, process: asyncio.subprocess.Process, proxy: str) -> None:
        self.process = process
        self.proxy = proxy

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def start(town: Town, app: str, folder: Path) -> Process:
    """Start the sidecar of ``app``."""
    config = folder / "applications.yaml"
    config.write_text(yaml.safe_dump(town.document()))
    town.system.tls(app, town.namespace)
    arguments = ("sidecar", "--app", app, "--config", str(config), "--json")
    place = ("--namespace", town.namespace, "--folder", str(town.system.layout.root))
    with (folder / f"{app}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "broker_policy.cli", *arguments, *place),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    text = ""
    async with asyncio.timeout(60):
        while "}" not in text:
            line = await process.stdout.readline()
            assert line, (folder / f"{app}.log").read_text()
            text += line.decode()
    return Process(process, json.loads(text)["proxy"])


@contextlib.asynccontextmanager
async def running(town: Town, app: str, folder: Path) -> AsyncIterator[Process]:
    """The same, ended at the end."""
    process = await start(town, app, folder)
    try:
        yield process
    finally:
        await process.kill()
