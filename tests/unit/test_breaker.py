"""The circuit breaker in a worker, on real servers: what counts, lost probes, Redis, removed agents."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from broker_policy.admission import breaker as breakers
from broker_policy.admission.breaker import Breaker
from broker_policy.admission.circuit import Circuit
from broker_policy.admission.circuits import SharedCircuits
from broker_policy.admission.counters import Counters
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.jetstream import direct_get_page
from mas_nats.policy.call import Refusal
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import CircuitBreaker, Dlp, Governance, RateLimits
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE
from tests.conftest import StartRedis
from tests.serving import Serving, document, serving

AGENTS = ("alice", "bob", "carol")
LONG = CircuitBreaker(failure_threshold=2, success_threshold=1, timeout_seconds=600, window_seconds=600)
BRIEF = LONG.model_copy(update={"timeout_seconds": 1.0})
INSTANCE = "0" * 20
CARD = "4111 1111 1111 1111"
_ids = itertools.count(1)


def policy(breaker: CircuitBreaker = LONG, agents: tuple[str, ...] = AGENTS, **more: Any) -> Any:
    limits = more.pop("limits", Limits(max_deliver=3))
    return document(agents, limits=limits, governance=Governance(circuit_breaker=breaker, **more))


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc, policy()) as up:
        yield up


@pytest.fixture
async def counters(redis_server: RedisServer) -> AsyncIterator[Counters]:
    found = Counters.at(redis_server.url, patience=30)
    yield found
    await found.close()


def breaker_of(here: Serving) -> Breaker:
    return here.service._breaker


async def inbox(here: Serving) -> list[Any]:
    return await direct_get_page(here.nc, subjects.INBOX_STREAM, subjects.inbox("bob"), 1, batch=100)


async def fail(here: Serving, sequence: int, **more: Any) -> Verdict:
    said = {"attempt": 1, "error_class": "OSError", "error": "", "retryable": True, "handler_failed": True}
    return await here.call("bob", "fail", {"sequence": sequence, **said, **more})


async def opened(here: Serving) -> None:
    """Two messages to bob fail."""
    for n in range(2):
        assert (await here.send("alice", "bob", id=f"f{n}")).ok
    for stored in await inbox(here):
        assert (await fail(here, stored.sequence)).ok
    assert (await here.send("alice", "bob")).decision is Decision.CIRCUIT_OPEN


async def half_open(here: Serving) -> None:
    """Bob may be tried, from a moment ago on. Without Redis."""
    breaker_of(here)._own.circuits["bob"] = Circuit(until=time.time_ns() // 1_000_000 - 1_000)
    await breaker_of(here)._look()


async def handle(here: Serving, count: int) -> None:
    """Bob handles what lies there."""
    pulled = await here.nc.jetstream().pull_subscribe_bind(consumer="bob", stream=subjects.INBOX_STREAM)
    for message in await pulled.fetch(count, timeout=5):
        await message.ack_sync()
    await pulled.unsubscribe()


async def until(condition: Callable[[], object], timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def until_passed(here: Serving, timeout: float = 10) -> float:
    """Send until it passes; the seconds that took."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout):
        while not (verdict := await here.send("alice", "bob")).ok:
            assert verdict.decision is Decision.CIRCUIT_OPEN
            await asyncio.sleep(0.05)
    return time.monotonic() - begun


# -- whose failures count -----------------------------------------------------------------------------
FAILURES = [
    ({}, True),
    ({"retryable": False}, True),  # after it began to stream its answer
    ({"attempt": 3}, True),
    ({"handler_failed": None}, True),  # an SDK that does not say so
    ({"retryable": False, "handler_failed": None}, False),
    ({"retryable": False, "handler_failed": False, "error_class": "Reject"}, False),
    ({"error_class": "RateLimited"}, False),
    ({"error_class": "CircuitOpen"}, False),
    ({"error_class": "CircuitOpen", "attempt": 3}, False),
]


@pytest.mark.parametrize(("report", "counts"), FAILURES, ids=str)
async def test_what_counts_is_that_a_handler_failed_by_itself(here: Serving, report: Any, counts: bool):
    for _ in range(4):
        await here.send("alice", "bob")
    for stored in await inbox(here):
        assert (await fail(here, stored.sequence, **report)).ok
    assert breaker_of(here).quiet is not counts
    assert (await here.send("alice", "bob")).ok is not counts


# -- what is refused, and what never is -----------------------------------------------------------------
async def test_a_repetition_of_what_was_accepted_is_told_so(here: Serving):
    await opened(here)
    again = await here.send("alice", "bob", id="f0")
    assert (again.ok, again.duplicate) == (True, True)
    reused = await here.send("alice", "bob", {"n": 2}, id="f0")
    assert reused.decision is Decision.ID_REUSED


async def test_replies_to_an_agent_that_is_left_alone_pass(here: Serving):
    """Else a request that it made would never be answered, and its handlers hang."""
    deadline = str(time.time_ns() // 1_000_000 + 5_000)
    fields = {headers.MSG_ID: "q1", headers.TARGET: "carol", headers.TYPE: "ask"}
    fields |= {headers.INSTANCE: INSTANCE, headers.DEADLINE: deadline}
    await opened(here)
    assert (await here.call("bob", "request", {}, **fields)).ok
    token = (await here.log())[-1].headers[headers.REPLY_TOKEN]
    answer = {headers.MSG_ID: "r1", headers.TYPE: "answer", headers.REPLY_TOKEN: token}
    assert (await here.call("carol", "reply", {"n": 1}, **answer)).ok


async def test_the_order_limits_then_circuits_then_content(nc: Client):
    rates = RateLimits(per_minute=3)
    async with serving(nc, policy(rate_limit=rates)) as here:
        await opened(here)  # two, and the one that was refused counts as well
        assert (await here.send("alice", "bob")).decision is Decision.RATE_LIMITED
        assert (await here.send("carol", "bob", {"text": CARD})).decision is Decision.CIRCUIT_OPEN
        assert (await here.send("carol", "alice", {"text": CARD})).decision is Decision.DLP_BLOCKED


# -- probes of which nothing is heard ---------------------------------------------------------------
async def test_a_probe_that_is_refused_later_on_makes_room_at_once(nc: Client):
    async with serving(nc, policy(dlp=Dlp())) as here:
        await half_open(here)
        assert (await here.send("alice", "bob", {"text": CARD})).decision is Decision.DLP_BLOCKED
        assert await until_passed(here) < 60
        assert (await here.send("alice", "bob")).decision is Decision.CIRCUIT_OPEN, "one at a time"


async def test_a_probe_that_expired_makes_room_at_once(here: Serving):
    await half_open(here)
    fields = {headers.MSG_ID: "q1", headers.TARGET: "bob", headers.TYPE: "ask", headers.INSTANCE: INSTANCE}
    fields[headers.DEADLINE] = str(time.time_ns() // 1_000_000 + 1_000)
    assert (await here.call("alice", "request", {}, **fields)).ok
    assert (await here.send("alice", "bob")).decision is Decision.CIRCUIT_OPEN
    (stored,) = await inbox(here)
    expired = {"error_class": "EXPIRED", "retryable": False, "handler_failed": False}
    assert (await fail(here, stored.sequence, **expired)).ok
    await until_passed(here)
    assert not breaker_of(here).quiet


async def test_a_probe_that_nobody_handles_makes_room_after_the_timeout(nc: Client):
    """Its agent is not there, or was killed with it in hand."""
    async with serving(nc, policy(BRIEF)) as here:
        await half_open(here)
        assert (await here.send("alice", "bob", id="lost")).ok
        assert await until_passed(here) > 0.5
        assert not breaker_of(here).quiet
        await handle(here, 2)
        await until(lambda: breaker_of(here).quiet)


async def test_a_probe_is_followed_for_as_long_as_it_keeps_its_room(
    here: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(breakers, "_FOLLOW_FOR", 0.3)
    monkeypatch.setattr(breakers, "_FOLLOW_EVERY", 0.05)
    await half_open(here)
    assert (await here.send("alice", "bob")).ok
    await asyncio.sleep(0.6)
    assert not breaker_of(here).quiet
    await handle(here, 1)
    await until(lambda: breaker_of(here).quiet)


async def test_a_probe_whose_worker_died_makes_room_after_the_timeout(nc: Client, counters: Counters):
    async with serving(nc, policy(BRIEF), counters=counters) as here:
        await opened(here)
        await handle(here, 2)
        await until_passed(here)
    async with serving(nc, policy(BRIEF), counters=counters) as here:  # does not follow the other's probe
        await handle(here, 1)
        await until_passed(here)
        await handle(here, 1)
        await until(lambda: breaker_of(here).quiet)


async def test_a_probe_is_gone_with_a_message_that_an_operator_removed(here: Serving):
    """That is taken as handled: nothing else can be seen of it."""
    await half_open(here)
    assert (await here.send("alice", "bob")).ok
    await here.nc.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox("bob"))
    await until(lambda: breaker_of(here).quiet)


async def test_a_node_that_does_not_know_a_probe_yet_does_not_call_it_handled(here: Serving):
    """One that was elected, or restored, may not have come so far."""
    await half_open(here)
    assert await breaker_of(here).admit([("bob", "x")]) == [True]
    breaker_of(here).probed("bob", "x", 10**6)
    await breaker_of(here)._follow_probes()
    assert not breaker_of(here).quiet
    await here.send("alice", "alice")  # the control: a sequence that was there, and is not bob's
    breaker_of(here).probed("bob", "x", 1)
    await breaker_of(here)._follow_probes()
    assert breaker_of(here).quiet


# -- Redis --------------------------------------------------------------------------------------------------
class Alone:
    """A breaker by itself."""

    def __init__(self, nc: Client, counters: Counters) -> None:
        shared = SharedCircuits(counters, NAMESPACE)
        self.breaker = Breaker(
            nc,
            NAMESPACE,
            shared=shared,
            settings=lambda: LONG,
            there=self._there,
            removed=lambda _: False,
        )

    async def _there(self, _agent: str, _sequence: int) -> bool:
        return True

    async def open(self) -> None:
        for name in "ab":
            await self.breaker.failed("bob", name)

    async def refuses(self) -> bool:
        (said,) = await self.breaker.admit([("bob", f"x{next(_ids)}")])
        return isinstance(said, Refusal)


async def test_an_open_circuit_stays_open_when_redis_goes(nc: Client, start_redis: StartRedis):
    server = await start_redis()
    found = Counters.at(server.url)
    opener, other = Alone(nc, found), Alone(nc, found)
    await opener.open()
    await other.breaker._look()
    server.kill()
    for worker in (opener, other):
        await worker.breaker._look()
        assert await worker.refuses()
    await found.close()


async def test_a_redis_that_lost_everything_is_told_again(nc: Client, start_redis: StartRedis):
    server = await start_redis()
    found = Counters.at(server.url)
    worker, other = Alone(nc, found), Alone(nc, found)
    server.kill()
    await worker.open()
    assert found.away
    await server.start()
    await until(lambda: not found.away)
    assert not await other.refuses()
    await worker.breaker._look()
    await other.breaker._look()
    assert await other.refuses()
    await found.close()


async def test_what_is_heard_while_redis_is_read_counts(
    nc: Client, counters: Counters, monkeypatch: pytest.MonkeyPatch
):
    worker, other = Alone(nc, counters), Alone(nc, counters)
    shared = worker.breaker._shared
    read = shared.unsettled

    async def open_it() -> None:
        await other.open()

    async def close_it() -> None:
        await other.breaker._change("bob", lambda _circuit, _now: Circuit(), LONG)

    for happens, refused in ((open_it, True), (close_it, False)):

        async def late(settings: CircuitBreaker, happens: Any = happens) -> Any:
            found = await read(settings)
            await happens()
            await worker.breaker._read("bob")
            return found

        monkeypatch.setattr(shared, "unsettled", late)
        await worker.breaker._look()
        assert await worker.refuses() == refused
    monkeypatch.undo()
    await worker.breaker._look()
    assert not await worker.refuses()


async def test_redis_is_not_asked_by_each_batch(nc: Client, counters: Counters, redis_server: RedisServer):
    async with aclosing(Redis.from_url(redis_server.url)) as redis:

        async def asked() -> int:
            said: Any = await redis.info("commandstats")
            return sum(each["calls"] for name, each in said.items() if "eval" in name)

        worker = Alone(nc, counters)
        await worker.open()
        before = await asked()
        for _ in range(500):
            assert await worker.refuses()
        assert await asked() == before, "open: known in memory"
        past = Circuit(until=time.time_ns() // 1_000_000 - 1_000)
        await worker.breaker._change("bob", lambda _circuit, _now: past, LONG)
        assert not await worker.refuses()  # the probe
        before, begun = await asked(), time.monotonic()
        for _ in range(500):
            assert await worker.refuses()
        rounds = 1 + (time.monotonic() - begun) / breakers._FOLLOW_EVERY
        assert await asked() - before <= rounds


# -- agents that go and come -------------------------------------------------------------------------------
async def test_a_removed_agent_has_no_circuit_and_comes_back_with_none(
    nc: Client, counters: Counters, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(breakers, "_LOOK_EVERY", 0.1)
    async with serving(nc, policy(), counters=counters) as here:
        await opened(here)

        async def apply(agents: tuple[str, ...]) -> None:
            stored = await here.store.get(NAMESPACE)
            assert stored is not None
            sequence = await here.store.put(policy(agents=agents), expected=stored.sequence)
            await until(lambda: here.follower.revision >= sequence)

        await apply(AGENTS)
        await asyncio.sleep(0.3)  # some looks
        assert not breaker_of(here).quiet, "the control: what changed was not who is there"
        await apply(("alice", "carol"))
        await until(lambda: breaker_of(here).quiet)
        await apply(AGENTS)
        assert (await here.send("alice", "bob")).ok
