"""One policy worker more for a running system, which can be given work that the others do not share.

``python -m tests.busy_worker --folder .mas --namespace n`` joins the queue of calls as every worker does. It
also takes what somebody in the tenant account publishes on ``busy.call.<agent>.send``: a way to keep this
worker under full batches while the others have little to do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from broker_policy.embedded.layout import Layout
from broker_policy.worker import PolicyWorker, WorkerConfig
from tests.system import REPOSITORY, System

NAME = "busy"


def subject(agent: str) -> str:
    """Where a call of ``agent`` reaches this worker and no other."""
    return f"{NAME}.call.{agent}.send"


@contextlib.asynccontextmanager
async def busy_worker(system: System, namespace: str) -> AsyncIterator[None]:
    """Run one for the length of the block."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.busy_worker"),
        *("--folder", str(system.layout.root), "--namespace", namespace),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(20):
            assert await child.stdout.readline(), "the worker did not start"
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.communicate()


async def _run(folder: Path, namespace: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = PolicyWorker(WorkerConfig.embedded(Layout(folder), NAME))
    await worker.start()
    while (served := worker._namespaces.get(namespace)) is None:
        await asyncio.sleep(0.05)
    await served.nc.subscribe_directly(subject("*"), served.service._take)
    await served.nc.flush()
    print("ready", flush=True)
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1)
    await worker.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    arguments = parser.parse_args()
    import uvloop

    uvloop.run(_run(arguments.folder, arguments.namespace))
