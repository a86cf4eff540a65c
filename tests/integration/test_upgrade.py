"""Workers of two versions side by side, upgraded and downgraded one by one under load."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tarfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.ports import free_port
from broker_policy.embedded.process import Process
from mas_nats import Agent, AgentMessage, RequestTimeout
from mas_nats.wire.correlation import new_message_id
from tests.load import UNSURE, Handling, audit_of
from tests.parts import parts
from tests.system import REPOSITORY, System, mas

PREVIOUS = "f478b4d"
"""The version that the one under test must run beside."""
STEP = 400
"""Messages between two restarts."""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of the previous version."""
    done = subprocess.run(
        ["git", "-C", REPOSITORY, "archive", PREVIOUS], capture_output=True, check=False, timeout=60
    )
    if done.returncode:
        pytest.skip(f"commit {PREVIOUS} is not in this clone (a shallow one?), or git is not here")
    tree = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}


class Workers:
    """Worker processes of either version, by name."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.running: dict[str, Process] = {}

    async def start(self, name: str, tree: Path) -> None:
        ready = self._layout.ready(name)

        async def is_ready() -> bool:
            return ready.exists()

        process = Process(
            name,
            [
                sys.executable,
                "-P",
                "-m",
                "broker_policy.worker",
                "--folder",
                self._layout.root,
                "--name",
                name,
            ],
            cwd=self._layout.root,
            output=self._layout.log(name),
            ready=is_ready,
            prepare=lambda: ready.unlink(missing_ok=True),
            env=environment(tree),
        )
        await process.start(60)
        self.running[name] = process

    async def replace(self, name: str, tree: Path) -> None:
        await self.running[name].stop(30)
        await self.start(name, tree)

    def logs(self) -> str:
        return "".join(self._layout.log(name).read_text() for name in self.running)


class Desk(Handling):
    """Handles what is sent, answers what is asked, counts in its state."""

    async def on_message(self, message: AgentMessage) -> None:
        await super().on_message(message)
        if message.message_type == "ask":
            await message.reply("answer", {"n": message.data["n"]})


@pytest.mark.slow
async def test_a_rolling_upgrade_and_downgrade_under_load(  # noqa: C901 - senders, askers and their watch
    previous: Path, tmp_path: Path
) -> None:
    async with parts(tmp_path, workers=0) as up, AsyncExitStack() as stack:
        workers = Workers(up.layout)
        stack.callback(lambda: [worker.kill() for worker in workers.running.values()])
        for name in ("w1", "w2"):
            await workers.start(name, previous)
        namespace = await up.namespace(["sender", "desk"], {"sender": ["desk"]})
        sender, desk = [
            await stack.enter_async_context(
                kind(name, server_addr=up.broker.url, tls=up.tls(name, namespace))
            )
            for name, kind in (("sender", Handling), ("desk", Desk))
        ]
        accepted: set[str] = set()
        answered = 0
        stopped = asyncio.Event()

        async def send() -> None:
            while not stopped.is_set():
                one = new_message_id()
                while True:
                    try:
                        await sender.send("desk", "work", {"n": 1}, id=one)
                    except UNSURE:
                        await asyncio.sleep(0.05)
                        continue
                    break
                accepted.add(one)

        async def ask() -> None:
            nonlocal answered
            while not stopped.is_set():
                try:
                    answer = await sender.request("desk", "ask", {"n": answered}, timeout=5)
                except (*UNSURE, RequestTimeout):
                    await asyncio.sleep(0.05)
                    continue
                assert answer.data == {"n": answered}
                answered += 1

        async def more() -> None:
            messages, answers = len(accepted) + STEP, answered + 20
            async with asyncio.timeout(40):
                while len(accepted) < messages or answered < answers:
                    await asyncio.wait(running, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                    for task in running:
                        assert not task.done(), task.result()

        running = [asyncio.create_task(work()) for work in (send,) * 8 + (ask,)]
        await more()
        for tree in (REPOSITORY, previous):
            for name in ("w1", "w2"):
                await workers.replace(name, tree)
                await more()
            await desk.update_state({"seen": len(desk.handled)})
        stopped.set()
        await asyncio.gather(*running)
        assert await desk.wait_handled(accepted, 60) == set()
        await audit_of(up, namespace, accepted)
        where = ("--folder", str(up.layout.root), "--namespace", namespace)
        verified = await asyncio.to_thread(mas, "audit", "verify", *where, check=False)
        assert verified.returncode == 0, verified.stdout
        assert "cannot be read" not in workers.logs(), "a policy document closed its namespace"


async def test_a_folder_of_the_previous_version(previous: Path, tmp_path: Path) -> None:
    """``mas up`` on it, and back to the previous one."""
    folder = tmp_path / ".mas"
    manifest = tmp_path / "mas.yaml"
    manifest.write_text(
        "permissions:\n  - type: allow_bidirectional\n    agents: [sender, desk]\n"
        "agents:\n  - {agent_id: sender}\n  - {agent_id: desk}\n"
    )
    port = str(free_port())
    old(previous, "up", "--detach", "--folder", str(folder), "--manifest", str(manifest), "--port", port)
    system = System(Layout(folder))
    try:
        url = system.broker.url
        certificates = {name: system.tls(name, "default") for name in ("sender", "desk")}
        sent = {await send_one(url, certificates) for _ in range(3)}
        old(previous, "down", "--folder", str(folder))

        mas("up", "--detach", "--folder", str(folder), "--manifest", str(manifest))
        assert system.broker.url == url
        sent.add(await send_one(url, certificates))
        desk = Desk("desk", server_addr=url, tls=certificates["desk"])
        async with desk:
            assert await desk.wait_handled(sent, 30) == set()
        assert mas("audit", "verify", "--folder", str(folder), check=False).returncode == 0
        system.down()

        old(previous, "up", "--detach", "--folder", str(folder), "--manifest", str(manifest))
        again = await send_one(system.broker.url, certificates)
        async with Desk("desk", server_addr=system.broker.url, tls=certificates["desk"]) as desk:
            assert await desk.wait_handled({again}, 30) == set()
        assert system.broker.url == url
    finally:
        old(previous, "down", "--folder", str(folder), check=False)


async def send_one(url: str, certificates: dict[str, object]) -> str:
    one = new_message_id()
    async with Agent("sender", server_addr=url, tls=certificates["sender"]) as sender:
        await sender.send("desk", "work", {"n": 1}, id=one)
    return one


def old(tree: Path, *arguments: str, check: bool = True) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "broker_policy.cli", *arguments],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr


def test_the_previous_version_is_the_one_that_runs(previous: Path) -> None:
    """The control: its tree wins over the one under test."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import broker_policy; print(broker_policy.__file__)"],
        env=environment(previous),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(previous)
