"""The circuit breaker on the real broker: whose failures open it, what senders see, how it closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import BaseModel

from broker_policy.admission.circuit import State
from broker_policy.jetstream import stream_info
from mas_nats import Agent, AgentMessage, CircuitOpen, Decision, Refused, Reject, RequestFailed
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import CircuitBreaker, Governance
from tests.parts import Parts, parts
from tests.system import mas, mas_json

AGENTS = ["one", "two", "desk", "other"]
ALLOW = {"one": ["desk", "other"], "two": ["desk", "other"], "desk": ["other"]}
QUICK = Limits(retry_delay=0.1, max_deliver=20)
THREE = CircuitBreaker(failure_threshold=3, success_threshold=2, timeout_seconds=2, window_seconds=300)
LONG = THREE.model_copy(update={"timeout_seconds": 120.0})


class Task(BaseModel):
    n: int


class Desk(Agent[dict[str, object]]):
    """Fails while it is ill."""

    ill = True
    slow: asyncio.Event | None = None

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.handled: list[int] = []
        self.failed: list[int] = []
        self.read = asyncio.Event()  # the requester has read something

    @Agent.on("task", model=Task)
    async def task(self, message: AgentMessage, task: Task) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.ill:
            self.failed.append(task.n)
            raise RuntimeError("the database is away")
        self.handled.append(task.n)
        if message.expects_reply:
            await message.reply("done", {})

    @Agent.on("refused")
    async def refused(self, message: AgentMessage) -> None:
        raise Reject("not this")

    @Agent.on("story")
    async def story(self, message: AgentMessage) -> None:
        async with message.reply_stream() as stream:
            await stream.write({"text": "once"})
            await self.read.wait()
            self.failed.append(-1)
            raise RuntimeError("the model is away")


class Other(Agent[dict[str, object]]):
    """Answers, whole or in parts."""

    @Agent.on("ask")
    async def ask(self, message: AgentMessage) -> None:
        await message.reply("answer", {"n": 1})

    @Agent.on("story")
    async def story(self, message: AgentMessage) -> None:
        async with message.reply_stream() as stream:
            for text in ("once", "upon", "a time"):
                await stream.write({"text": text})


class System(AsyncExitStack):
    """Connected agents of one namespace."""

    def __init__(self, up: Parts, namespace: str) -> None:
        super().__init__()
        self._up = up
        self.namespace = namespace

    async def agent(self, name: str, kind: type[Agent] = Agent) -> Agent:
        tls = self._up.tls(name, self.namespace)
        return await self.enter_async_context(kind(name, server_addr=self._up.broker.url, tls=tls))

    async def desk(self) -> Desk:
        desk = await self.agent("desk", Desk)
        assert isinstance(desk, Desk)
        return desk

    def breakers(self) -> list[object]:
        return [worker._namespaces[self.namespace].service._breaker for worker in self._up.workers]

    def known(self) -> list[bool]:
        """Of each worker, whether it knows of a circuit that is not closed."""
        return [not each.quiet for each in self.breakers()]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path, workers=0) as running:
        for _ in range(2):
            await running.start_worker(counted_within=10.0)  # a busy machine is slow
        yield running


@contextlib.asynccontextmanager
async def system(up: Parts, breaker: CircuitBreaker, limits: Limits = QUICK) -> AsyncIterator[System]:
    governance = Governance(circuit_breaker=breaker)
    async with System(up, await up.namespace(AGENTS, ALLOW, limits=limits, governance=governance)) as running:
        yield running


async def until(condition: Callable[[], object], timeout: float = 20) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def until_refused(send: Callable[[], Awaitable[object]], timeout: float = 20) -> Refused:
    """Send until it is refused."""
    async with asyncio.timeout(timeout):
        while True:
            try:
                await send()
            except Refused as refused:
                return refused
            await asyncio.sleep(0.05)


async def opened(here: System, one: Agent, desk: Desk, count: int = 3) -> None:
    """Have ``desk`` fail until every worker knows."""
    for n in range(count):
        await one.send("desk", "task", {"n": n})
    await until(lambda: all(here.known()))
    assert set(desk.failed) <= set(range(count))


async def test_it_opens_for_everybody_at_every_worker_and_nobody_else(up: Parts) -> None:
    async with system(up, LONG) as here:
        one, two, desk = await here.agent("one"), await here.agent("two"), await here.desk()
        await opened(here, one, desk)
        for agent in (one, two) * 4:  # by either worker
            with pytest.raises(CircuitOpen) as refused:
                await agent.send("desk", "task", {"n": 9})
            assert refused.value.decision is Decision.CIRCUIT_OPEN
            assert refused.value.verdict.retry
            assert 100 < refused.value.retry_after <= 120
        with pytest.raises(CircuitOpen):
            await one.request("desk", "task", {"n": 9})
        await one.send("other", "task", {"n": 9})
        assert 9 not in desk.failed


async def test_bad_payloads_never_open_it(up: Parts) -> None:
    """Fault 9 of the ancestor: five bad payloads from one sender shut the target off from all."""
    async with system(up, THREE) as here:
        one, two, desk = await here.agent("one"), await here.agent("two"), await here.desk()
        desk.ill = False
        for _ in range(6):
            await one.send("desk", "task", {"n": "not a number"})
            await one.send("desk", "unheard-of", {})
            await one.send("desk", "refused", {})
        await until_dead(up, here.namespace, 18)
        await two.request("desk", "task", {"n": 1})
        assert here.known() == [False, False]


async def letters(up: Parts, namespace: str) -> int:
    """How many dead letters there are."""
    async with up.tenant(namespace) as nc:
        return int((await stream_info(nc, "DLQ"))["state"]["messages"])


async def until_dead(up: Parts, namespace: str, count: int) -> None:
    async with asyncio.timeout(20):
        while await letters(up, namespace) != count:
            await asyncio.sleep(0.1)


async def until_audited(up: Parts, namespace: str, *words: bytes) -> None:
    """Wait until some entry of the audit has all of ``words``."""
    async with asyncio.timeout(10), up.redis() as redis:
        while True:
            entries = [fields[b"e"] for _, fields in await redis.xrange(f"mas:audit:{namespace}:chain")]
            if any(all(word in entry for word in words) for entry in entries):
                return
            await asyncio.sleep(0.1)


async def test_one_message_that_nobody_can_handle_does_not_open_it(up: Parts) -> None:
    async with system(up, THREE) as here:
        one, desk = await here.agent("one"), await here.desk()
        await one.send("desk", "task", {"n": 0})
        await until(lambda: len(desk.failed) >= 6)
        assert here.known() == [False, False]


async def test_off_means_off(up: Parts) -> None:
    """The control of all others: the same failures."""
    async with system(up, THREE.model_copy(update={"enabled": False})) as here:
        one, desk = await here.agent("one"), await here.desk()
        for n in range(9):
            await one.send("desk", "task", {"n": n})
        await until(lambda: len(set(desk.failed)) == 9)
        await one.send("desk", "task", {"n": 10})
        assert here.known() == [False, False]


async def test_by_default_five_messages_that_fail_within_minutes_open_it(up: Parts) -> None:
    """A namespace that says nothing of governance at all."""
    async with System(up, await up.namespace(AGENTS, ALLOW, limits=QUICK)) as here:
        one, desk = await here.agent("one"), await here.desk()
        for n in range(4):
            await one.send("desk", "task", {"n": n})
        await until(lambda: len(set(desk.failed)) == 4 and len(desk.failed) > 8)
        assert here.known() == [False, False]
        await one.send("desk", "task", {"n": 4})
        await until(lambda: all(here.known()))
        with pytest.raises(CircuitOpen) as refused:
            await one.send("desk", "task", {"n": 5})
        assert 50 < refused.value.retry_after <= 60


async def test_an_agent_that_is_left_alone_still_asks_and_is_answered(up: Parts) -> None:
    """Replies and streams to it pass: a handler that waited for one in vain would fail once more."""
    async with system(up, LONG) as here:
        one, desk, _ = await here.agent("one"), await here.desk(), await here.agent("other", Other)
        await opened(here, one, desk)
        reply = await desk.request("other", "ask", {}, timeout=10)
        assert reply.data == {"n": 1}
        chunks = [chunk async for chunk in desk.stream("other", "story", {}, timeout=10)]
        assert chunks == [{"text": "once"}, {"text": "upon"}, {"text": "a time"}]
        with pytest.raises(CircuitOpen):
            async for _ in one.stream("desk", "story", {}, timeout=10):
                pass


async def test_a_handler_that_fails_amid_its_stream_counts(up: Parts) -> None:
    async with system(up, LONG) as here:
        one, desk = await here.agent("one"), await here.desk()
        for _ in range(3):
            stream = one.stream("desk", "story", {}, timeout=10)
            assert await anext(stream) == {"text": "once"}
            desk.read.set()
            with pytest.raises(RequestFailed):
                await anext(stream)
            desk.read.clear()
        await until(lambda: all(here.known()))
        assert len(desk.failed) == 3, "not tried again"


async def test_probes_close_it_when_they_are_handled(up: Parts) -> None:
    async with system(up, THREE) as here:
        one, desk = await here.agent("one"), await here.desk()
        await opened(here, one, desk)
        desk.ill, desk.slow = False, asyncio.Event()
        refused = await until_refused(lambda: one.send("desk", "task", {"n": 99}))
        await asyncio.sleep(refused.verdict.retry_after)
        assert refused.decision is Decision.CIRCUIT_OPEN
        told = await asyncio.gather(
            *(one.send("desk", "task", {"n": 100 + n}) for n in range(12)), return_exceptions=True
        )
        passed = [100 + n for n, each in enumerate(told) if not isinstance(each, BaseException)]
        assert len(passed) == THREE.success_threshold
        assert all(isinstance(each, CircuitOpen) for each in told if isinstance(each, BaseException))
        desk.slow.set()
        await until(lambda: here.known() == [False, False])
        assert set(passed) <= set(desk.handled)
        for n in range(20):
            await one.send("desk", "task", {"n": 200 + n})


async def test_a_probe_that_fails_opens_it_again(up: Parts) -> None:
    async with system(up, THREE) as here:
        one, desk = await here.agent("one"), await here.desk()
        await opened(here, one, desk)
        due = (await until_refused(lambda: one.send("desk", "task", {"n": 99}))).retry_after
        await asyncio.sleep(due + 0.05)
        await one.send("desk", "task", {"n": 100})
        await until(lambda: 100 in desk.failed)
        refused = await until_refused(lambda: one.send("desk", "task", {"n": 101}), timeout=5)
        assert refused.retry_after > 1


async def test_a_target_that_dies_of_its_messages_opens_it(up: Parts) -> None:
    """No report says so: the server does, when the last attempt was not answered."""
    limits = Limits(max_deliver=1, ack_wait=1.0)
    async with system(up, LONG, limits) as here:
        one = await here.agent("one")
        for n in range(3):
            await one.send("desk", "task", {"n": n})
        async with up.tenant(here.namespace) as nc:
            pulled = await nc.jetstream().pull_subscribe_bind(consumer="desk", stream="INBOX")
            assert len(await pulled.fetch(3, timeout=5)) == 3  # and never acknowledged
            async with asyncio.timeout(30):
                while not all(here.known()):
                    with contextlib.suppress(Exception):
                        await pulled.fetch(1, timeout=0.5)
        with pytest.raises(CircuitOpen):
            await one.send("desk", "task", {"n": 9})


async def test_delayed_messages_wait_until_it_is_tried(up: Parts) -> None:
    async with system(up, THREE) as here:
        one, desk = await here.agent("one"), await here.desk()
        await one.send("desk", "task", {"n": 50}, delay=1.0)
        await opened(here, one, desk)
        desk.ill = False
        await until(lambda: 50 in desk.handled, timeout=40)
        await until_audited(up, here.namespace, b'"release"', b"CIRCUIT_OPEN")
        assert await letters(up, here.namespace) == 0


async def test_redrives_are_kept_while_it_is_open(up: Parts) -> None:
    async with system(up, LONG, Limits(retry_delay=0.1, max_deliver=1)) as here:
        one, desk = await here.agent("one"), await here.desk()
        await opened(here, one, desk)
        await until_dead(up, here.namespace, 3)
        desk.ill = False
        folder = ("--folder", str(up.layout.root), "-n", here.namespace)
        for how in (("--dry-run",), ()):
            done = await asyncio.to_thread(
                mas, "dlq", "redrive", "--all", *how, *folder, "--json", check=False
            )
            assert "CIRCUIT_OPEN" in done.stdout
        assert await letters(up, here.namespace) == 3
        assert (await asyncio.to_thread(mas_json, "breaker", "reset", "desk", *folder))["was"] == State.OPEN
        await asyncio.to_thread(mas, "dlq", "redrive", "--all", *folder)
        await until(lambda: len(desk.handled) == 3)


async def test_operators_see_and_reset_it(up: Parts) -> None:
    async with system(up, LONG) as here:
        one, desk = await here.agent("one"), await here.desk()
        folder = ("--folder", str(up.layout.root), "-n", here.namespace)
        assert (await asyncio.to_thread(mas_json, "breaker", "list", *folder))["circuits"] == []
        await opened(here, one, desk)
        (row,) = (await asyncio.to_thread(mas_json, "breaker", "list", *folder))["circuits"]
        assert (row["agent"], row["state"]) == ("desk", "open")
        text = (await asyncio.to_thread(mas, "breaker", "list", *folder)).stdout
        assert "desk" in text
        assert "open" in text
        checked = ("policy", "check", "one", "desk", *folder)
        done = await asyncio.to_thread(mas, *checked, "--json", check=False)
        found = json.loads(done.stdout)
        assert (found["decision"], found["rule"]) == ("CIRCUIT_OPEN", "circuit_open")
        mistyped = await asyncio.to_thread(mas, "breaker", "reset", "dsk", *folder, check=False)
        assert mistyped.returncode == 1
        assert "there is no agent 'dsk'" in mistyped.stderr
        desk.ill = False
        await asyncio.to_thread(mas, "breaker", "reset", "desk", "--by", "maria", *folder)
        await until(lambda: here.known() == [False, False])
        await one.request("desk", "task", {"n": 7})
        done = await asyncio.to_thread(mas, *checked, "--json")
        found = json.loads(done.stdout)
        steps = {each["step"]: each["outcome"] for each in found["findings"]}
        assert (found["decision"], steps["circuit_breaker"]) == ("ALLOWED", "passes")
        await until_audited(up, here.namespace, b'"reset"', b"maria")


async def test_without_redis_every_worker_has_its_own(up: Parts) -> None:
    async with system(up, LONG) as here:
        one = await here.agent("one")
        await here.desk()
        up.redis_server.kill()
        for n in range(12):  # enough for each of two workers
            with contextlib.suppress(CircuitOpen):
                await one.send("desk", "task", {"n": n})
        refused = await until_refused(lambda: one.send("desk", "task", {"n": 90}))
        assert refused.decision is Decision.CIRCUIT_OPEN
        await up.redis_server.start()
        await until(lambda: not any(worker._counters.away for worker in up.workers))
        await until(lambda: all(here.known()))  # what one of them learned, all know
        with pytest.raises(CircuitOpen):
            await one.send("desk", "task", {"n": 91})
