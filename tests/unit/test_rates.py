"""Rate limits on a real Redis: never one message more than the algorithm allows, however many workers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_policy.admission import counters as counters_module
from broker_policy.admission.admission import Admission
from broker_policy.admission.counters import Away, Counters
from broker_policy.admission.gcra import HOUR, MINUTE, SCRIPT, Batch, OwnRates, limits_of
from broker_policy.admission.rates import Rates
from broker_policy.dedup import dedup_id
from broker_policy.embedded.redis_server import RedisServer
from mas_nats.policy.call import Call, Errand, Refusal
from mas_nats.policy.document import Document
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.policy.table import Table
from mas_nats.wire.verdict import Decision, Verdict
from tests.conftest import StartRedis

START = 1_800_000_000_000_000
"""Microseconds: when the tests' time begins."""
ONE = [("alice", "bob")]


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def counters(redis_server: RedisServer) -> AsyncIterator[Counters]:
    found = patient(redis_server.url)
    yield found
    await found.close()


def patient(url: str) -> Counters:
    """A busy machine is slow."""
    return Counters.at(url, patience=30)


def rates(counters: Counters, time: Callable[[], int], workers: int = 1, namespace: str = "ns") -> Rates:
    return Rates(counters, namespace, workers=lambda: workers, now=time, own_clock=time)


def allowed(verdicts: list[Refusal | None]) -> int:
    return sum(each is None for each in verdicts)


# -- never one too many ---------------------------------------------------------------------------------
LIMITS = st.builds(
    RateLimits,
    per_minute=st.integers(0, 40),
    per_hour=st.integers(0, 100),
    pair_per_minute=st.integers(0, 15),
    pair_per_hour=st.integers(0, 40),
    burst=st.integers(0, 12),
)
MESSAGES = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=30)
STEPS = st.lists(
    st.tuples(st.integers(0, 3), MESSAGES, st.sampled_from([0, 1, 999_999, 10_000_000, MINUTE])), max_size=12
)


def most(sent: list[tuple[int, str, str]], limit: Any, key: Callable[[str, str], Any]) -> None:
    """In any span no more than burst + span * rate, counted without the algorithm."""
    times: dict[Any, list[int]] = {}
    for at, sender, target in sent:
        times.setdefault(key(sender, target), []).append(at)
    length = MINUTE if limit.span == "minute" else HOUR
    burst = limit.most // limit.interval
    for moments in times.values():
        for first in range(len(moments)):
            for last in range(first, len(moments)):
                span = moments[last] - moments[first]
                assert last - first + 1 <= burst + span * limit.count / length + 1e-6


_namespaces = itertools.count()


@given(limits=LIMITS, steps=STEPS)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_four_workers_admit_no_more_than_one_could(limits: RateLimits, steps: Any, redis_url: str) -> None:
    async def run() -> None:
        time = Time()
        workers = [patient(redis_url) for _ in range(4)]
        namespace = f"n{next(_namespaces)}"
        limiting = [rates(each, time, namespace=namespace) for each in workers]
        alone, compiled = OwnRates(), limits_of(limits)
        sent: list[tuple[int, str, str]] = []
        try:
            for worker, messages, pause in steps:
                verdicts = await limiting[worker].admit(messages, limits)
                here = [at for at, refusal in enumerate(verdicts) if refusal is None]
                sent += [(time.now, *messages[at]) for at in here]
                if compiled:  # the form in memory says the very same
                    excess = {each.place for each in alone.admit(Batch.of(messages, compiled), time.now)}
                    assert set(here) == set(range(len(messages))) - excess
                time.now += pause
        finally:
            for each in workers:
                await each.close()
        for limit in compiled:
            most(sent, limit, (lambda s, t: (s, t)) if limit.pair else (lambda s, _: s))

    asyncio.run(run())


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


async def test_workers_at_once_admit_exactly_the_limit(redis_server: RedisServer):
    time = Time()
    workers = [patient(redis_server.url) for _ in range(4)]
    limits = RateLimits(per_minute=100)
    told = await asyncio.gather(
        *(rates(worker, time).admit(ONE * 7, limits) for worker in workers for _ in range(20))
    )
    assert sum(allowed(each) for each in told) == 100
    for worker in workers:
        await worker.close()


async def test_workers_that_do_not_share_admit_more(redis_server: RedisServer):
    """The control: the same with a namespace for each."""
    time = Time()
    counters = patient(redis_server.url)
    limits = RateLimits(per_minute=100)
    told = [await rates(counters, time, namespace=f"n{n}").admit(ONE * 140, limits) for n in range(4)]
    assert sum(allowed(each) for each in told) == 400
    await counters.close()


@pytest.mark.parametrize("limits", [RateLimits(per_minute=1, burst=10**13), RateLimits(per_hour=10**20)])
async def test_a_number_that_no_computer_word_holds_is_no_obstacle(counters: Counters, limits: RateLimits):
    limited = rates(counters, Time())
    for _ in range(3):
        assert allowed(await limited.admit(ONE * 1_000, limits)) == 1_000


# -- one limit at a time --------------------------------------------------------------------------------
async def test_what_is_refused_uses_up_nothing(counters: Counters):
    """The pair's limit is met; the sender's own is not spent on what it refuses."""
    limiter = rates(counters, Time())
    limits = RateLimits(per_minute=10, pair_per_minute=3)
    assert allowed(await limiter.admit(ONE * 50, limits)) == 3
    assert allowed(await limiter.admit([("alice", "carol")] * 50, limits)) == 3
    assert allowed(await limiter.admit([("alice", f"t{n}") for n in range(50)], limits)) == 4


async def test_each_refusal_names_its_limit_and_when(counters: Counters):
    time = Time()
    limiter = rates(counters, time)
    limits = RateLimits(per_minute=60, per_hour=100, pair_per_minute=6, burst=2)
    (refusal,) = (await limiter.admit(ONE * 3, limits))[2:]
    assert refusal is not None
    assert (refusal.decision, refusal.step, refusal.rule) == (
        Decision.RATE_LIMITED,
        "rate_limit",
        "pair_per_minute",
    )
    assert refusal.retry
    assert refusal.retry_after == pytest.approx(10)
    assert refusal.reason == "alice may send 6 messages a minute to bob"
    time.now += int(refusal.retry_after * 1e6) - 1
    assert allowed(await limiter.admit(ONE, limits)) == 0
    time.now += 1
    assert allowed(await limiter.admit(ONE, limits)) == 1


async def test_by_redis_own_clock(counters: Counters):
    limiter = Rates(counters, "ns", workers=lambda: 1)
    (first, second) = await limiter.admit(ONE * 2, RateLimits(per_minute=600, burst=1))
    assert first is None
    assert second is not None
    assert 0 < second.retry_after <= 0.1
    async with asyncio.timeout(5):
        while (await limiter.admit(ONE, RateLimits(per_minute=600, burst=1))) != [None]:
            await asyncio.sleep(0.02)


async def test_a_limit_that_is_lowered_holds_at_once(counters: Counters):
    time = Time()
    limiter = rates(counters, time)
    assert allowed(await limiter.admit(ONE * 1000, RateLimits(per_hour=1000))) == 1000
    time.now += HOUR // 1000
    assert allowed(await limiter.admit(ONE * 5, RateLimits(per_hour=10))) == 0
    time.now += HOUR // 10
    assert allowed(await limiter.admit(ONE * 5, RateLimits(per_hour=10))) == 1


# -- nothing grows (fault 12 of the ancestor) -----------------------------------------------------------
async def test_every_key_ends_and_traffic_makes_no_more_of_them(counters: Counters, redis: Any):
    limiter = rates(counters, Time(), namespace="ends")
    limits = RateLimits(per_minute=1000, per_hour=100_000, pair_per_minute=500, pair_per_hour=500)
    await limiter.admit(ONE, limits)
    keys = sorted([key async for key in redis.scan_iter("mas:rate:*")])
    assert keys == [
        b"mas:rate:ends:alice:hour",
        b"mas:rate:ends:alice:minute",
        b"mas:rate:ends:alice>bob:hour",
        b"mas:rate:ends:alice>bob:minute",
    ]
    size = sum([await redis.memory_usage(key) for key in keys])
    for _ in range(50):
        await limiter.admit(ONE * 100, limits)
    assert sorted([key async for key in redis.scan_iter("mas:rate:*")]) == keys
    assert sum([await redis.memory_usage(key) for key in keys]) == size
    for key in keys:
        assert 0 < await redis.pttl(key) <= 3_600_000 + 60_000


def test_what_is_kept_in_memory_is_forgotten_too():
    own, limits = OwnRates(), limits_of(RateLimits(per_minute=60, burst=1))
    for number in range(10_001):
        own.admit(Batch.of([(f"s{number}", "x")], limits), START + number * MINUTE)
    assert len(own._tat) < 10


# -- without Redis (fault 15) ----------------------------------------------------------------------------
async def test_without_redis_each_worker_enforces_its_share(start_redis: StartRedis, caplog: Any):
    server = await start_redis()
    counters = patient(server.url)
    time = Time()
    limits = RateLimits(per_minute=100)
    shares = [rates(counters, time, workers=4) for _ in range(4)]
    assert allowed(await shares[0].admit(ONE * 10, limits)) == 10
    server.kill()
    told = [await each.admit(ONE * 200, limits) for each in shares]
    assert [allowed(each) for each in told] == [25] * 4
    refusal = told[0][-1]
    assert refusal is not None
    assert "its share, 1/4 of it" in refusal.reason
    assert counters.away
    time.now += MINUTE // 25
    assert [allowed(await each.admit(ONE * 9, limits)) for each in shares] == [1] * 4
    assert sum("does not count" in record.message for record in caplog.records) == 1
    await server.start()
    async with asyncio.timeout(10):
        while counters.away:
            await asyncio.sleep(0.05)
    time.now += 10 * MINUTE
    assert sum([allowed(await each.admit(ONE * 200, limits)) for each in shares]) == 100
    await counters.close()


async def test_a_redis_that_stands_still_is_waited_for_once(start_redis: StartRedis):
    server = await start_redis()
    counters = Counters.at(server.url, patience=0.3)
    limiter = rates(counters, Time())
    limits = RateLimits(per_minute=5)
    assert allowed(await limiter.admit(ONE * 9, limits)) == 5
    server.pause()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert allowed(await limiter.admit(ONE * 9, limits)) == 5  # its own share begins anew
    assert allowed(await limiter.admit(ONE * 9, limits)) == 0
    assert 0.3 <= loop.time() - begun < 0.3 + 0.25
    server.resume()
    async with asyncio.timeout(5):
        while counters.away:
            await asyncio.sleep(0.02)
    assert allowed(await limiter.admit(ONE * 9, limits)) == 0, "what was counted before still is"
    await counters.close()


async def test_a_redis_that_is_full_does_not_count(counters: Counters, redis: Any, monkeypatch: Any):
    monkeypatch.setattr(counters_module, "_LOOK_EVERY", 0.02)
    await redis.config_set("maxmemory", 1)
    limits = RateLimits(per_minute=5)
    limiter = rates(counters, Time(), workers=2)
    assert allowed(await limiter.admit(ONE * 9, limits)) == 2
    await asyncio.sleep(0.1)
    assert counters.away, "it answers, but takes nothing"
    await redis.config_set("maxmemory", 0)
    async with asyncio.timeout(5):
        while counters.away:
            await asyncio.sleep(0.02)
    assert allowed(await limiter.admit(ONE * 9, limits)) == 5


async def test_a_redis_that_comes_and_goes_frees_nobody(counters: Counters, monkeypatch: Any):
    """A share that was used is not given again with each outage."""
    limiter = rates(counters, Time())
    limits = RateLimits(per_minute=5)
    through = 0
    for away in (False, True) * 4:
        monkeypatch.setattr(counters, "_away", away)
        through += allowed(await limiter.admit(ONE * 9, limits))
    assert through == 10


async def test_a_redis_that_forgot_the_script_is_told_again(counters: Counters, redis: Any):
    limiter = rates(counters, Time())
    await limiter.admit(ONE, RateLimits(per_minute=5))
    await redis.script_flush()
    assert allowed(await limiter.admit(ONE * 9, RateLimits(per_minute=5))) == 4
    assert not counters.away


async def test_no_redis_at_all():
    with pytest.raises(Away):
        await Counters(None).run(SCRIPT, [], [])


# -- what counts ------------------------------------------------------------------------------------------
def table(limits: RateLimits) -> Table:
    return Table.compile(Document(namespace="ns", account="", governance=Governance(rate_limit=limits)), 1)


class Quiet:
    """All circuits are closed."""

    quiet = True

    async def admit(self, messages: Any) -> Any:
        raise AssertionError

    def concerns(self, target: str) -> bool:
        raise AssertionError

    def foresee(self, target: str) -> None:
        return None


def call(op: str, **more: Any) -> Call:
    return Call("alice", op, b"{}", "", message_id="m", target="bob", type="work", **more)


async def test_only_what_an_agent_sends_counts_and_only_once():
    known = dedup_id("ns", "alice", "known")
    admission = Admission("ns", rates(Counters(None), Time()), Quiet(), known=lambda dedup: dedup == known)
    policy = table(RateLimits(per_minute=3))
    kept = call("send")
    assert await admission.admit([kept], policy) == [None]
    for _ in range(5):
        assert await admission.admit([kept], policy) == [None]  # put back, or handed to the other lane
    free = [call(op) for op in ("reply", "frame", "state", "hello", "fail", "release", "redrive")]
    free += [call("send", errand=Errand("ops")), call("send")]
    free[-1].message_id = "known"
    assert await admission.admit(free * 4, policy) == [None] * 4 * len(free)
    said = await admission.admit([call("send"), call("request"), call("delay")], policy)
    assert [refusal and refusal.decision for refusal in said] == [None, None, Decision.RATE_LIMITED]


async def test_where_nothing_is_limited_nobody_is_asked():
    class Nobody:
        async def admit(self, messages: Any, limits: Any) -> Any:
            assert not messages
            return []

    admission = Admission("ns", Nobody(), Quiet(), known=lambda _: False)
    assert not admission.concerns(table(RateLimits()))
    assert await admission.admit([call("send")], table(RateLimits())) == [None]


def test_the_verdict_says_when():
    refusal = Refusal(Decision.RATE_LIMITED, "rate_limit", "per_hour", "no", retry=True, retry_after=1.5)
    assert Verdict.decode(refusal.verdict("m").encode()).retry_after == 1.5
    assert b"retry_after" not in Refusal(Decision.INVALID, "shape", "x", "y").verdict("m").encode()


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_shares_add_up_to_no_more_than_the_limit(workers: int):
    for limit in limits_of(RateLimits(per_minute=60, per_hour=7, pair_per_minute=50, burst=10)):
        share = limit.share(workers)
        assert share.interval == workers * limit.interval
        at_once = share.most // share.interval
        assert at_once >= 1
        assert at_once * workers <= max(limit.most // limit.interval, workers)
