"""Workers that kill themselves at a point of ``tests/dying_worker.py``, beside the parts of a test."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

from tests.parts import Parts
from tests.system import REPOSITORY


@contextlib.asynccontextmanager
async def dying(up: Parts, point: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that will die at ``point``, and is ready."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.dying_worker", point),
        *("--folder", str(up.layout.root), "--name", "dying"),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while not up.layout.ready("dying").exists():
                await asyncio.sleep(0.05)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def died(worker: asyncio.subprocess.Process) -> None:
    """Wait until it has killed itself, which is not to fail."""
    assert await asyncio.wait_for(worker.wait(), 20) == -signal.SIGKILL
