"""What users' unit tests see of ``MemoryBroker``, beside the behaviour that tests/contract shows."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import mas_nats
from mas_nats import (
    Agent,
    AgentMessage,
    Decision,
    OutcomeUnknown,
    PermissionDenied,
    Refused,
    RequestFailed,
    RequestTimeout,
    Unavailable,
)
from mas_nats.testing import Limits, MemoryBroker, StateMode, WantedAgent
from tests import documented

AGENTS = {"desk": ("qa",), "router": (), "billing": ()}
ALLOW = {"router": ("desk",)}


class Desk(Agent[dict[str, object]]):
    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.tried: list[float] = []

    @Agent.on("ask")
    async def ask(self, message: AgentMessage) -> None:
        await self.update_state({"asked": message.data["question"]})
        await message.reply("answer", {"text": "42"})

    @Agent.on("fail")
    async def fail(self, message: AgentMessage) -> None:
        self.tried.append(asyncio.get_running_loop().time())
        raise ValueError("not today")

    @Agent.on("slow")
    async def slow(self, message: AgentMessage) -> None:
        self.tried.append(asyncio.get_running_loop().time())
        await asyncio.sleep(message.data.get("seconds", 3600))


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    async with MemoryBroker(AGENTS, allow=ALLOW) as broker:
        yield broker


@pytest.fixture
async def desk(broker: MemoryBroker) -> AsyncIterator[Desk]:
    async with broker.agent(Desk, "desk") as desk:
        yield desk


@pytest.fixture
async def router(broker: MemoryBroker) -> AsyncIterator[Agent[Any]]:
    async with broker.agent(Agent, "router") as router:
        yield router


async def test_what_happened_can_be_looked_at(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    await router.request("desk", "ask", {"question": "why"})
    with pytest.raises(PermissionDenied, match="no rule allows router to send to billing"):
        await router.send("billing", "invoice", {"n": 1})
    (sent,) = broker.sent
    assert (sent.op, sent.sender, sent.target, sent.message_type) == ("request", "router", "desk", "ask")
    assert broker.messages_to("desk") == broker.messages_from("router") == [sent]
    assert broker.messages_to("billing") == []
    (reply,) = broker.replies
    assert (reply.target, reply.data) == ("router", {"text": "42"})
    assert [(each.op, each.decision) for each in broker.decisions] == [
        ("request", "ALLOWED"),
        ("state", "ALLOWED"),
        ("reply", "ALLOWED"),
        ("send", "AUTHZ_DENIED"),
    ]
    assert broker.state_of("desk") == {"asked": "why"}
    assert broker.state_of("router") is None


# -- time --------------------------------------------------------------------------------------------------
async def test_retries_take_no_time_and_are_spaced_as_declared(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    before = time.monotonic()
    await router.send("desk", "fail", {})
    await broker.idle()
    assert len(desk.tried) == 1
    assert broker.waiting("desk") == 1
    await broker.advance(0.9)
    assert len(desk.tried) == 1
    await broker.advance(0.2)
    assert len(desk.tried) == 2
    await broker.advance(3600)
    assert [later - sooner for sooner, later in pairwise(desk.tried)] == pytest.approx([1, 2, 4, 8])
    (dead,) = broker.dead_letters("desk")
    assert (dead.reason, dead.attempts, dead.message.message_type) == ("EXHAUSTED", 5, "fail")
    assert dead.error.startswith("ValueError: not today")
    assert broker.waiting("desk") == 0
    assert time.monotonic() - before < 2


async def test_a_minute_of_waiting_is_over_at_once(broker: MemoryBroker, router: Agent[Any]):
    before, started = time.monotonic(), broker.now
    with pytest.raises(RequestTimeout):
        await router.request("desk", "ask", {}, timeout=60)
    assert broker.now - started == pytest.approx(60, abs=1)
    assert time.monotonic() - before < 2


async def test_idle_says_who_is_not(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    await router.send("desk", "slow", {})
    with pytest.raises(TimeoutError, match="desk handles 'slow' from router"):
        await broker.idle(timeout=10)
    await broker.idle(timeout=7200)
    assert broker.waiting("desk") == 0


async def test_time_passes_as_it_does_where_the_test_wants_it():
    async with (
        MemoryBroker(AGENTS, allow=ALLOW, virtual_time=False) as broker,
        broker.agent(Desk, "desk"),
        broker.agent(Agent, "router") as router,
    ):
        before = time.monotonic()
        with pytest.raises(RequestTimeout):
            await router.request("desk", "slow", {"seconds": 0.3}, timeout=0.2)
        assert time.monotonic() - before >= 0.2


async def test_threads_and_sockets_keep_their_time():
    async with MemoryBroker(AGENTS):
        before = asyncio.get_running_loop().time()
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.1), timeout=30)
        assert 0.05 < asyncio.get_running_loop().time() - before < 5
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        real = time.monotonic()
        await asyncio.sleep(0.1)
        assert time.monotonic() - real >= 0.09
        server.close()
        await server.wait_closed()


async def test_a_loop_gets_its_time_back():
    loop = asyncio.get_running_loop()
    async with MemoryBroker(AGENTS), MemoryBroker(AGENTS):
        await asyncio.sleep(1000)
        ahead = loop.time()
    real = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - real >= 0.04
    assert loop.time() >= ahead


def test_another_event_loop_is_told_what_to_do():
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="virtual_time=False"):
            MemoryBroker(AGENTS).start()
        async with (
            MemoryBroker(AGENTS, allow=ALLOW, virtual_time=False) as broker,
            broker.agent(Desk, "desk"),
            broker.agent(Agent, "router") as router,
        ):
            assert (await router.request("desk", "ask", {"question": "?"})).data == {"text": "42"}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# -- trouble -----------------------------------------------------------------------------------------------
async def test_a_refusal_of_the_test(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    broker.refuse("send", target="desk", decision=Decision.RATE_LIMITED, reason="60 a minute")
    with pytest.raises(Refused, match="RATE_LIMITED: 60 a minute"):
        await router.send("desk", "note", {})
    await router.send("desk", "note", {})
    assert len(broker.messages_to("desk")) == 1


async def test_a_lost_answer_is_repeated_and_stored_once(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    broker.lose_answers("send")
    await router.send("desk", "note", {})
    broker.lose_calls("send")
    await router.send("desk", "note", {})
    assert len(broker.sent) == 2
    assert [each.rule for each in broker.decisions] == ["permissions", "duplicate", "permissions"]


async def test_answers_that_stay_away_leave_the_outcome_unknown(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    broker.lose_answers("send", times=None)
    with pytest.raises(OutcomeUnknown) as caught:
        await router.send("desk", "note", {})
    assert [each.message_id for each in broker.sent] == [caught.value.message_id]


async def test_nobody_there(broker: MemoryBroker, router: Agent[Any]):
    with broker.no_workers(), pytest.raises(Unavailable, match="no policy worker answers"):
        await router.send("desk", "note", {})
    await router.send("desk", "note", {})


async def test_cut_off_and_back(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    broker.disconnect("desk")
    broker.disconnect("router")
    with pytest.raises(Unavailable, match="the test cut router off"):
        await router.send("desk", "ask", {}, timeout=5)
    broker.reconnect("router")
    asking = asyncio.ensure_future(router.request("desk", "ask", {"question": "late"}))
    await broker.advance(5)
    assert not asking.done()
    broker.reconnect("desk")
    assert (await asking).data == {"text": "42"}


async def test_a_requester_that_was_cut_off_gets_its_reply_later(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    asking = asyncio.ensure_future(router.request("desk", "ask", {"question": "?"}))
    while not broker.sent:
        await asyncio.sleep(0)
    broker.disconnect("router")
    await broker.advance(1)
    assert broker.replies
    assert not asking.done()
    broker.reconnect("router")
    assert (await asking).data == {"text": "42"}


async def test_a_handler_that_was_cut_off_is_handled_once_when_it_is_back_in_time(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    await router.send("desk", "slow", {"seconds": 10})
    await broker.advance(1)
    broker.disconnect("desk")
    await broker.advance(15)
    assert broker.waiting("desk") == 1
    broker.reconnect("desk")
    await broker.idle()
    assert broker.waiting("desk") == 0
    assert len(desk.tried) == 1


async def test_a_handler_that_was_cut_off_for_too_long_runs_again(
    broker: MemoryBroker, desk: Desk, router: Agent[Any]
):
    await router.send("desk", "slow", {"seconds": 10})
    await broker.advance(1)
    broker.disconnect("desk")
    await desk.stop()
    async with broker.agent(Desk, "billing"):
        await broker.advance(60)
    broker.reconnect("desk")
    async with broker.agent(Desk, "desk") as other:
        await broker.idle()
        assert len(other.tried) == 1
    assert broker.waiting("desk") == 0


async def test_policy_can_change(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    broker.set_permissions("router", allowed=["*"], blocked=["desk"])
    with pytest.raises(PermissionDenied, match="blocked"):
        await router.send("desk", "note", {})
    await router.send("billing", "note", {})
    broker.declare("audit", ["log"])
    await router.send("audit", "note", {})


async def test_a_state_that_was_there_before(broker: MemoryBroker):
    broker.put_state("desk", {"asked": "before"})
    async with broker.agent(Desk, "desk") as desk:
        assert desk.state == {"asked": "before"}


async def test_an_inbox_and_a_log_that_are_full():
    limits = Limits(inbox_messages=2, log_bytes=1000)
    async with (
        MemoryBroker(AGENTS, allow={"router": ["*"]}, limits=limits) as broker,
        broker.agent(Agent, "router") as router,
    ):
        await router.send("desk", "note", {})
        await router.send("desk", "note", {})
        with pytest.raises(Refused, match="INBOX_FULL: the inbox of desk is full"):
            await router.send("desk", "note", {})
        with pytest.raises(Refused, match="LOG_FULL"):
            await router.send("billing", "note", {"x": "y" * 2000})


async def test_a_failed_request_says_so(broker: MemoryBroker, desk: Desk, router: Agent[Any]):
    with pytest.raises(RequestFailed, match="desk could not handle the request"):
        await router.request("desk", "unknown", {})


async def test_direct_state(broker: MemoryBroker):
    broker.declare("desk", WantedAgent(("qa",), state=StateMode.DIRECT))
    async with broker.agent(Desk, "desk") as desk:
        await desk.update_state({"asked": 1})
        assert broker.state_of("desk") == {"asked": 1}
        assert not broker.decisions
        broker.declare("desk", WantedAgent(("qa",)))
        await desk.update_state({"asked": 2})
        assert broker.state_of("desk") == {"asked": 2}
        assert [each.op for each in broker.decisions] == ["state"]


# -- the whole ---------------------------------------------------------------------------------------------
async def test_the_same_every_time():
    async def run() -> list[object]:
        async with MemoryBroker(AGENTS, allow=ALLOW) as broker:
            desks = [broker.agent(Desk, "desk") for _ in range(3)]
            router = broker.agent(Agent, "router")
            for each in (*desks, router):
                await each.start()
            for n in range(10):
                await router.send("desk", "fail" if n % 3 else "ask", {"question": n}, id=f"m{n}")
            await broker.advance(100)
            seen: list[object] = [(each.sender, each.op, each.decision) for each in broker.decisions]
            seen += [(each.message.message_id, each.attempts) for each in broker.dead_letters("desk")]
            seen += [len(each.tried) for each in desks]
            for each in (*desks, router):
                await each.stop()
        return seen

    assert await run() == await run()


async def test_no_thread_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    before = time.monotonic()
    async with MemoryBroker(AGENTS, allow=ALLOW) as broker, broker.agent(Desk, "desk"):
        assert threading.active_count() == threads
    assert time.monotonic() - before < 0.5
    assert not list(tmp_path.iterdir())


async def test_a_manifest(tmp_path: Path):
    (tmp_path / "mas.yaml").write_text(
        "agents:\n  - {agent_id: desk, capabilities: [qa], state: direct}\n  - {agent_id: router}\n"
        "permissions:\n  - {type: allow, sender: router, targets: [desk]}\n"
    )
    async with (
        MemoryBroker.from_manifest(tmp_path / "mas.yaml") as broker,
        broker.agent(Desk, "desk", capabilities=["qa"]),
        broker.agent(Agent, "router") as router,
    ):
        assert [each.agent_id for each in await router.discover(["qa"])] == ["desk"]
        await router.request("desk", "ask", {"question": "?"})
        assert broker.state_of("desk") == {"asked": "?"}


async def test_mistakes_of_the_test_are_told():
    with pytest.raises(RuntimeError, match="async with MemoryBroker"):
        MemoryBroker(AGENTS).agent(Desk, "desk")
    async with MemoryBroker(AGENTS) as broker:
        with pytest.raises(TypeError, match="transport= takes the place of"):
            broker.agent(Desk, "desk", server_addr="127.0.0.1:4222")
        with pytest.raises(LookupError, match="there is no agent 'dsk' on this broker; did you mean 'desk'"):
            broker.waiting("dsk")
    with pytest.raises(ValueError, match="is not a valid id"):
        MemoryBroker({"Desk": ()})


def test_one_file_of_the_sdk_knows_the_policy_service():
    package = Path(mas_nats.__file__).parent
    importing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) broker_policy", path.read_text(), re.MULTILINE)
    }
    assert importing == {"testing/real.py"}


def test_agents_import_nothing_of_it():
    """The SDK stays light, and imports go one way."""
    code = (
        "import sys, mas_nats\n"
        "apart = ('mas_nats.testing', 'mas_nats.policy', 'mas_nats.manifest', 'broker_policy')\n"
        "assert not [m for m in sys.modules if m.startswith(apart)]\n"
        "import mas_nats.testing\n"
        "assert not [m for m in sys.modules if m.startswith(('broker_policy', 'yaml', 'redis', 'pytest'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_about_testing_works(tmp_path: Path):
    assert "2 passed" in documented.run(tmp_path, "-k", "not real")
