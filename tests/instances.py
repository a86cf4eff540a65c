"""Instances of an agent as processes, started and ended at will, and what they wrote down."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker_policy.jetstream import direct_get_page
from mas_nats.wire import headers, subjects
from tests.system import REPOSITORY, System


@dataclass
class Instances:
    """Processes of one agent, with one log."""

    system: System
    namespace: str
    agent: str
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start one more."""
        tls = self.system.tls(self.agent, self.namespace)
        ca, cert, key = map(str, tls.paths)
        where = ["--agent", self.agent, "--url", self.system.broker.url, "--log", str(self.log)]
        files = ["--ca", ca, "--cert", cert, "--key", key]
        command = [sys.executable, "-m", "tests.instance", *where, *files, *options]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    async def leave(self, process: subprocess.Popen[bytes]) -> None:
        """End one cleanly."""
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        self.processes.remove(process)

    async def kill(self, process: subprocess.Popen[bytes]) -> Counter[str]:
        """``kill -9`` one. How often each message was run that had been acknowledged by then, by anybody.

        The process is paused first, so that everything it has said arrives.
        """
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.3)
        ran = self.lines("done")
        waiting = await self.waiting()
        process.kill()
        await asyncio.to_thread(process.wait, 10)
        self.processes.remove(process)
        runs = self.lines("run")
        return Counter({message: runs[message] for message in ran if message not in waiting})

    async def waiting(self) -> set[str]:
        """Messages that are not acknowledged."""
        async with self.system.tenant(self.namespace) as client:
            subject = subjects.inbox(self.agent)
            found: set[str] = set()
            sequence = 1
            while page := await direct_get_page(client, subjects.INBOX_STREAM, subject, sequence):
                found |= {each.headers[headers.MESSAGE_ID] for each in page}
                sequence = page[-1].sequence + 1
        return found

    def lines(self, what: str, pid: int | None = None) -> Counter[str]:
        """How often each message was ``run`` or ``done``, by all or by one."""
        text = self.log.read_text() if self.log.exists() else ""
        lines = [line.split() for line in text.splitlines()]
        return Counter(line[2] for line in lines if line[1] == what and pid in (None, int(line[0])))


@contextmanager
def instances(system: System, namespace: str, agent: str, log: Path) -> Iterator[Instances]:
    """None at first; whatever runs at the end is killed."""
    made = Instances(system, namespace, agent, log)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait(10)
