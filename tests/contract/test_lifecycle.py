"""Starting, stopping, and what happens to a running agent when the world around it changes."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from mas_nats import (
    Agent,
    AgentMessage,
    IdentityRefused,
    OutcomeUnknown,
    PermissionDenied,
    RequestFailed,
    Unavailable,
    UnknownTarget,
)
from tests.contract.broker import LIMITS, Broker
from tests.contract.conftest import AGENTS, ALLOW, Recorder, Stage, eventually, now


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
    reconnected: list[float] = []
    sent = 0
    end = now() + 3

    async def count() -> None:
        reconnected.append(now())

    running: Any = b._running
    running.connection.after_reconnect.append(count)
    await stage.namespace.renew("b")
    while now() < end and not (reconnected and sent > 50):
        await a.send("b", "note", {"n": sent})
        sent += 1
    assert reconnected
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_second_signal_ends_what_is_handled(stage: Stage, number: signal.Signals):
    a, b = await stage.start(Agent, "a"), stage.make(Recorder, "b")
    ended = asyncio.Event()

    async def work(_: AgentMessage) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    b.work = work
    running = asyncio.ensure_future(b.run_until_stopped())
    async with asyncio.timeout(10):
        while not await a.discover():
            await asyncio.sleep(0.02)
    await a.send("b", "note", {})
    await eventually(lambda: b.running)
    os.kill(os.getpid(), number)
    await asyncio.wait((running,), timeout=0.5)
    assert not ended.is_set(), "the first one waits for what is handled"
    async with asyncio.timeout(15):  # it would be waited for for 30 s
        while not running.done():
            os.kill(os.getpid(), number)  # within a second another one counts as the same
            await asyncio.wait((running,), timeout=1.1)
    await running
    assert ended.is_set()
    assert await stage.namespace.waiting("b") == 1, "it was not given back"


class Once(Noting):
    @Agent.on("last")
    async def last(self, message: AgentMessage) -> None:
        self.finish()
        await asyncio.sleep(0)
        await message.reply("done", {})


async def test_an_agent_that_has_finished_is_stopped_when_its_handler_is_done(stage: Stage):
    a, b = await stage.start(Agent, "a"), stage.make(Once, "b")
    for _ in range(2):  # a new start is a new beginning
        running = asyncio.ensure_future(b.run_until_stopped())
        assert (await a.request("b", "last", {})).message_type == "done"
        await running
        assert b.steps[-1] == "stop 0"


async def test_an_identity_that_policy_does_not_know(stage: Stage):
    before = now()
    with pytest.raises(IdentityRefused, match="not in the policy"):
        await Agent("x", **stage.namespace.options("x")).start()
    assert now() - before < 3


async def test_an_agent_that_is_removed_learns_why(stage: Stage):
    (a,) = await stage.recorders("a")
    await stage.namespace.forget("a")
    with pytest.raises((IdentityRefused, PermissionDenied)):
        await a.send("b", "note", {}, timeout=2)


async def test_what_waits_for_a_removed_agent_is_dead_and_its_requester_is_told(stage: Stage):
    (a,) = await stage.recorders("a")
    asking = asyncio.ensure_future(a.request("b", "ask", {"n": 1}, timeout=20))
    async with asyncio.timeout(5):
        while not await stage.namespace.waiting("b"):
            await asyncio.sleep(0.01)
    await stage.namespace.forget("b")
    with pytest.raises(RequestFailed, match="AGENT_REMOVED"):
        await asking
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts, dead.body) == ("AGENT_REMOVED", 0, b'{"n":1}')
    with pytest.raises(UnknownTarget):
        await a.send("b", "note", {})


async def test_a_killed_server_is_survived(own_broker: Broker):
    stage = Stage(await own_broker.namespace(AGENTS, ALLOW, LIMITS))
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
    own_broker.crash()
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
