"""Starting, stopping, and what happens to a running agent when the world around it changes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from mas_nats import Agent, AgentMessage, IdentityRefused, OutcomeUnknown, PermissionDenied, Unavailable
from tests.contract.broker import LIMITS, RealBroker, RealNamespace
from tests.contract.conftest import AGENTS, ALLOW, Recorder, Stage, eventually
from tests.processes import kill
from tests.system import System, wanted


class Noting(Recorder):
    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.steps: list[str] = []

    async def on_start(self) -> None:
        self.steps.append(f"start {dict(self.state)} {len(await self.discover())}")

    async def on_stop(self) -> None:
        await self.send("c", "note", {"bye": True})
        self.steps.append(f"stop {self.running}")


async def test_hooks_run_while_everything_works(stage: Stage):
    a, c = await stage.recorders("a", "c")

    async def work(message: AgentMessage) -> None:
        await asyncio.sleep(0.1)

    b = stage.make(Noting, "b")
    b.work = work
    async with b:
        await a.send("b", "note", {})
        await eventually(lambda: b.running)
    assert b.steps == ["start {} 2", "stop 0"]
    await eventually(lambda: c.got)


async def test_start_and_stop_can_be_repeated(stage: Stage):
    (a,) = await stage.recorders("a")
    b = stage.make(Recorder, "b")
    for n in range(3):
        await b.start()
        await b.start()
        await a.send("b", "note", {"n": n})
        await eventually(lambda n=n: len(b.got) == n + 1)  # type: ignore[misc]
        await b.stop()
        await b.stop()


async def test_a_failing_on_start_leaves_nothing_running(stage: Stage):
    class Failing(Agent[Any]):
        async def on_start(self) -> None:
            raise RuntimeError("no")

    failing = stage.make(Failing, "b")
    with pytest.raises(RuntimeError, match="no"):
        await failing.start()
    with pytest.raises(Unavailable):
        await failing.send("c", "note", {})


async def test_renewed_certificates_lose_nothing(stage: Stage):
    a, b = await stage.recorders("a", "b")
    reconnects = 0
    sent = 0
    end = time.monotonic() + 3
    running: Any = b._running
    client = running.connection._client
    stage.namespace.options("b")  # issues a new certificate into the same files
    while time.monotonic() < end and not (reconnects and sent > 50):
        await a.send("b", "note", {"n": sent})
        sent += 1
        reconnects = client.stats["reconnects"]
    assert reconnects
    await eventually(lambda: len(b.got) >= sent, timeout=LIMITS.ack_wait)
    assert sorted(message.data["n"] for message in b.got) == list(range(sent))


async def test_a_program_ends_cleanly_on_sigterm(stage: Stage):
    a, b = await stage.start(Agent, "a"), stage.make(Noting, "b")
    running = asyncio.ensure_future(b.run_until_stopped())
    async with asyncio.timeout(10):
        while not await a.discover():
            await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert b.steps[-1] == "stop 0"


async def test_an_identity_that_policy_does_not_know(stage: Stage, system: System):
    namespace = cast("RealNamespace", stage.namespace).name
    before = time.monotonic()
    with pytest.raises(IdentityRefused, match="not in the policy"):
        await Agent("x", server_addr=system.broker.url, tls=system.tls("x", namespace)).start()
    assert time.monotonic() - before < 3


async def test_an_agent_that_is_removed_learns_why(stage: Stage, system: System):
    (a,) = await stage.recorders("a")
    namespace = cast("RealNamespace", stage.namespace).name
    await system.apply(wanted(namespace, ["b"], {}))
    with pytest.raises((IdentityRefused, PermissionDenied)):
        await a.send("b", "note", {}, timeout=2)


@pytest.fixture
def own_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System.up(tmp_path_factory.mktemp("own") / ".mas")
    yield system
    system.down()


async def test_a_killed_server_is_survived(own_system: System):
    stage = Stage(await RealBroker(own_system).namespace(AGENTS, ALLOW, LIMITS))
    a, b = await stage.recorders("a", "b")
    accepted: list[int] = []

    async def sending() -> None:
        for n in range(400):
            while True:
                try:
                    await a.send("b", "note", {"n": n}, id=f"n{n}", timeout=20)
                except (Unavailable, OutcomeUnknown):
                    await asyncio.sleep(0.05)
                else:
                    accepted.append(n)
                    break

    work = asyncio.ensure_future(sending())
    await eventually(lambda: len(accepted) > 50)
    kill(own_system.broker.pid, "nats-server")
    async with asyncio.timeout(40):
        await work
    await eventually(lambda: {message.data["n"] for message in b.got} == set(range(400)), timeout=15)

    async def work_b(message: AgentMessage) -> None:
        await message.reply("answer", {"n": 1})

    b.work = work_b
    assert (await a.request("b", "ask", {})).data == {"n": 1}
    async with asyncio.timeout(10):
        while [each.agent_id for each in await a.discover()] != ["b"]:
            await asyncio.sleep(0.1)
    await stage.close()
