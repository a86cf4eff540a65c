"""Runs the demo: ``make demo``, or ``python -m examples.demo``.

Everything is real and everything is temporary: nats-server with operator mode, mutual TLS and JetStream,
Redis, two policy workers, the checkpoint signer, and two agents, each a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.up import running
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.wire.identity import DEFAULT_NAMESPACE, DEFAULT_TRUST_DOMAIN, Identity, Role

HERE = Path(__file__).parent
UNFINISHED = ("", "unsettled", "committed", "redelivered")


class Story:
    """Prints what happens, and remembers what went wrong."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.failures: list[str] = []

    def say(self, who: str, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.2f} s  {who:<9} {text}", flush=True)

    def check(self, what: str, held: bool) -> None:  # noqa: FBT001 - the one thing it is told
        if not held:
            self.failures.append(what)
            self.say("demo", f"FAILED: {what}")


class AgentProcess:
    """An agent's process whose lines are told as they come."""

    def __init__(self, story: Story, name: str, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._story = story
        self._name = name
        self._process = process
        self._lines = process.stdout or asyncio.StreamReader()
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, story: Story, name: str, program: str, folder: Path, *arguments: str
    ) -> AgentProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / program),
            *arguments,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        return cls(story, name, process)

    async def _read(self) -> None:
        async for raw in self._lines:
            line = raw.decode(errors="replace").rstrip()
            self.lines.append(line)
            self._story.say(self._name, line)
            self._changed.set()
        self._changed.set()

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    async def wait_for(self, text: str, timeout: float = 20.0) -> bool:
        """Whether a line with ``text`` came before the process ended, within ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.has(text) and not self._reading.done():
                    self._changed.clear()
                    await self._changed.wait()
        return self.has(text)

    async def ended(self, timeout: float = 30.0) -> int:
        """The exit status, of an end by itself."""
        async with asyncio.timeout(timeout):
            await self._reading
            return await self._process.wait()

    async def stop(self) -> int:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await self.ended(15)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


@contextlib.asynccontextmanager
async def agent(
    story: Story, name: str, program: str, folder: Path, *args: str
) -> AsyncIterator[AgentProcess]:
    process = await AgentProcess.start(story, name, program, folder, *args)
    try:
        yield process
    finally:
        await process.stop()


async def tell(story: Story, folder: Path) -> None:
    layout = Layout(folder / ".mas")
    plan = Plan(workers=2, manifest=HERE / "mas.yaml")
    async with running(layout, plan, lambda line: story.say("mas up", line)) as broker:
        story.say("demo", f"broker ready on {broker.url}")
        authority = CertificateAuthority.open_or_create(layout.authority)
        for name in ("helpdesk", "router"):
            identity = Identity(DEFAULT_TRUST_DOMAIN, DEFAULT_NAMESPACE, Role.AGENT, name)
            authority.issue(identity, layout.certs, lifetime=timedelta(hours=1))
            story.say("demo", f"certificate for {identity.uri}")

        async with agent(story, "helpdesk", "desk.py", folder) as desk:
            story.check("the help desk starts with empty state", await desk.wait_for("answered=0"))
            await ask(story, folder, "Where is my order?", "answer 1 to")
            story.check("the note is handled", await desk.wait_for("noted"))
        story.say("demo", "help desk stopped; starting it again")
        async with agent(story, "helpdesk", "desk.py", folder) as desk:
            story.check("the state survives a restart", await desk.wait_for("answered=1 notes=1"))
            await ask(story, folder, "And my refund?", "answer 2 to")
            story.check("the second note is handled", await desk.wait_for("noted"))

        await show_audit(story, layout.root)


async def show_audit(story: Story, folder: Path) -> None:
    """Wait until every decision has its outcome, list them, and verify the chain."""
    waiting = True
    async with asyncio.timeout(30):
        while waiting:
            _, out = await mas("audit", "query", "--json", "--folder", str(folder))
            decisions = json.loads(out)["decisions"]
            waiting = any(each["outcome"] in UNFINISHED for each in decisions)
    for each in reversed(decisions):
        way = f"{each['sender']} -> {each['target']}"
        story.say("audit", f"{each['op']:<8} {way:<22} {each['decision']:<13} {each['outcome']}")
    status, out = await mas("audit", "verify", "--folder", str(folder))
    for line in out.splitlines():
        story.say("audit", line)
    story.check("the audit is intact", status == 0)


async def mas(*arguments: str) -> tuple[int, str]:
    """Run a ``mas`` command; its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker_policy.cli", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def ask(story: Story, folder: Path, question: str, expected: str) -> None:
    async with agent(story, "router", "router.py", folder, question) as router:
        status = await router.ended()
    story.check("the router ends well", status == 0)
    story.check("the help desk is discovered", router.has("discovered: helpdesk"))
    story.check("the question is answered", router.has(expected))
    story.check("the note is accepted", router.has("accepted as"))
    story.check("the forbidden message is refused, with its reason", router.has("refused: AUTHZ_DENIED"))


async def main() -> int:
    story = Story()
    with tempfile.TemporaryDirectory(prefix="mas-demo-") as folder:
        await tell(story, Path(folder))
    if story.failures:
        print(f"\n{len(story.failures)} things went wrong: {'; '.join(story.failures)}")
        return 1
    print("\nAll of it worked: sent, asked, answered, discovered, remembered, refused, and verified.")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
