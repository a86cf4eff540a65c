"""Rate limits on the real broker, with several workers: what the senders see."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest

from broker_policy.admission.census import Census
from mas_nats import Agent, AgentMessage, Decision, RateLimited
from mas_nats.policy.governance import Governance, RateLimits
from tests.parts import Parts, parts

MOST = 60
HOURLY = Governance(rate_limit=RateLimits(per_hour=MOST))
"""In the seconds that a test takes not one more becomes free."""
AGENTS = ["one", "two", "three", "desk"]
ALLOW = {agent: ["desk", "one"] for agent in AGENTS}


class Desk(Agent[dict[str, object]]):
    """Answers what it is asked."""

    async def on_message(self, message: AgentMessage) -> None:
        if message.expects_reply:
            await message.reply("answer", {"n": message.data["n"]})


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path, workers=0) as running:
        for _ in range(3):
            await running.start_worker(counted_within=10.0)  # a busy machine is slow
        yield running


class Senders(AsyncExitStack):
    """Connected agents of one namespace."""

    def __init__(self, up: Parts, namespace: str) -> None:
        super().__init__()
        self._up = up
        self._namespace = namespace

    async def agent(self, name: str, kind: type[Agent] = Agent) -> Agent:
        tls = self._up.tls(name, self._namespace)
        return await self.enter_async_context(kind(name, server_addr=self._up.broker.url, tls=tls))


async def outcomes(*calls: object) -> Counter[str]:
    """How many ended how, by the name of the error."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(type(each).__name__ if isinstance(each, Exception) else "accepted" for each in done)


async def test_three_workers_let_through_exactly_the_limit(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=HOURLY)
    async with Senders(up, namespace) as senders:
        one, two = await senders.agent("one"), await senders.agent("two")
        sends = [one.send("desk", "work", {"n": n}) for n in range(3 * MOST)]
        assert await outcomes(*sends) == {"accepted": MOST, "RateLimited": 2 * MOST}
        with pytest.raises(RateLimited) as refused:
            await one.send("desk", "work", {})
        assert 0 < refused.value.retry_after <= 60
        assert refused.value.verdict.rule == "per_hour"
        with pytest.raises(RateLimited):
            await one.send("desk", "work", {}, delay=5)
        await two.send("desk", "work", {})  # somebody else's limit is somebody else's
    async with up.tenant(namespace) as nc:
        waiting = await nc.request("$JS.API.STREAM.INFO.INBOX", b'{"subjects_filter":"mas.inbox.desk"}')
    assert orjson.loads(waiting.data)["state"]["subjects"] == {"mas.inbox.desk": MOST + 1}


async def test_without_a_limit_all_of_them_are_let_through(up: Parts) -> None:
    """The control."""
    namespace = await up.namespace(AGENTS, ALLOW)
    async with Senders(up, namespace) as senders:
        one = await senders.agent("one")
        assert await outcomes(*(one.send("desk", "work", {}) for _ in range(3 * MOST))) == {"accepted": 180}


async def test_replies_are_never_limited(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=HOURLY)
    async with Senders(up, namespace) as senders:
        await senders.agent("desk", Desk)
        askers = [await senders.agent(name) for name in ("one", "two", "three")]
        asked = [asker.request("desk", "ask", {"n": n}) for asker in askers for n in range(MOST - 1)]
        assert await outcomes(*asked) == {"accepted": 3 * (MOST - 1)}


async def test_delayed_messages_count_when_they_are_taken(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=HOURLY)
    async with Senders(up, namespace) as senders:
        one = await senders.agent("one")
        held = [one.send("desk", "work", {"n": n}, delay=0.5) for n in range(MOST + 20)]
        assert await outcomes(*held) == {"accepted": MOST, "RateLimited": 20}

        async def arrived() -> int:
            async with up.tenant(namespace) as nc:
                answer = await nc.request("$JS.API.STREAM.INFO.INBOX", b'{"subjects_filter":"mas.inbox.*"}')
            return sum((orjson.loads(answer.data)["state"].get("subjects") or {}).values())

        async with asyncio.timeout(20):  # though the sender may not send any more
            while await arrived() < MOST:
                await asyncio.sleep(0.1)


async def test_a_repeated_id_is_counted_once(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=Governance(rate_limit=RateLimits(per_hour=9)))
    async with Senders(up, namespace) as senders:
        one = await senders.agent("one")
        await one.send("desk", "work", {"n": 1}, id="again")
        for _ in range(30):
            assert await outcomes(one.send("desk", "work", {"n": 1}, id="again")) in (
                {"accepted": 1},
                {"RateLimited": 1},  # by one of the two workers that do not remember it, at most so often
            )
        limited = Counter[str]()
        for n in range(9):
            limited += await outcomes(one.send("desk", "work", {"n": n}))
        assert limited["accepted"] >= 6


async def test_while_redis_is_away_the_workers_share_the_limit(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=HOURLY)
    census = [worker._namespaces[namespace].service._census for worker in up.workers]
    await until_counted(census, 3)
    async with Senders(up, namespace) as senders:
        one, two, three = [await senders.agent(name) for name in ("one", "two", "three")]
        assert await outcomes(*(one.send("desk", "work", {}) for _ in range(MOST))) == {"accepted": MOST}
        up.redis_server.kill()
        told: Counter[str] = Counter()
        for _ in range(10 * MOST):  # each by itself: what is sent at once one worker judges, by its share
            told += await outcomes(two.send("desk", "work", {}))
        assert told == {"accepted": MOST, "RateLimited": 9 * MOST}
        with pytest.raises(RateLimited, match="its share, 1/3"):
            await two.send("desk", "work", {})
        await up.redis_server.start()
        async with asyncio.timeout(10):
            while any(worker._counters.away for worker in up.workers):
                await asyncio.sleep(0.05)
        assert await outcomes(*(one.send("desk", "work", {}) for _ in range(9))) == {"RateLimited": 9}
        told = await outcomes(*(three.send("desk", "work", {}) for _ in range(2 * MOST)))
        assert told == {"accepted": MOST, "RateLimited": MOST}


async def until_counted(census: list[Census], workers: int) -> None:
    async with asyncio.timeout(20):
        while any(each.workers != workers for each in census):
            await asyncio.sleep(0.1)


async def test_refusals_are_audited(up: Parts) -> None:
    namespace = await up.namespace(AGENTS, ALLOW, governance=Governance(rate_limit=RateLimits(per_hour=1)))
    async with Senders(up, namespace) as senders, up.redis() as redis:
        one = await senders.agent("one")
        await one.send("desk", "work", {}, id="first")
        with pytest.raises(RateLimited) as refused:
            await one.send("desk", "work", {}, id="second")
        assert refused.value.decision is Decision.RATE_LIMITED

        async def entries() -> bytes:
            found = await redis.xrange(f"mas:audit:{namespace}:chain")
            return b"".join(fields[b"e"] for _, fields in found)

        async with asyncio.timeout(10):
            while b'"second"' not in (text := await entries()):
                await asyncio.sleep(0.1)
        assert b'"RATE_LIMITED"' in text
