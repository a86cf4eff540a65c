"""Programs that stand by while something is measured: processes that say their port, and end when told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.site import REPOSITORY


@contextlib.asynccontextmanager
async def process(module: str, name: str, folder: Path, *arguments: str) -> AsyncIterator[int]:
    """Run ``module`` in the role ``name`` in ``folder``; the port that it says."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, name, *arguments),
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield int(await child.stdout.readline())
    finally:
        child.stdin.close()
        await child.wait()


async def stand_by(port: int) -> None:
    """Say ``port``, and wait until told to end."""
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def serve(application: Any) -> None:
    """Serve an ASGI application on a free port, until told to end."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        await stand_by(listening.getsockname()[1])
        server.should_exit = True
        await task
