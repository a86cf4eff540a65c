"""Leases of many namespaces, asked for together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_policy.audit.lease import TERM, Lease, Leases

SOON = 0.2


async def scripts_run(redis: Redis) -> int:
    """How often a script was run."""
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def test_who_can_wait_is_asked_for_together(redis: Redis) -> None:
    first, second = Leases(redis), Leases(redis)
    held = [Lease(first, f"lease-{number}", "w1") for number in range(40)]
    free = [Lease(first, f"lease-{number}", "w1") for number in range(40, 80)]
    others = [Lease(second, f"lease-{number}", "w2") for number in range(80)]
    assert all(await asyncio.gather(*(lease.hold() for lease in held)))
    before = await scripts_run(redis)
    told = await asyncio.gather(*(lease.hold(within=SOON) for lease in others))
    assert told == [False] * 40 + [True] * 40
    assert not any(await asyncio.gather(*(lease.hold(within=SOON) for lease in free)))
    assert await scripts_run(redis) == before + 2
    for lease in others[40:]:
        await lease.give_up()
    assert all(await asyncio.gather(*(lease.hold(within=SOON) for lease in free)))


def test_it_works_on_the_workers_loop() -> None:
    """Timers of uvloop are not those of asyncio."""

    class Given:
        def register_script(self, _: str) -> Any:
            async def told(*, keys: Sequence[str], args: Sequence[Any]) -> list[int]:
                assert len(args) == 1 + len(keys)
                return [1] * len(keys)

            return told

    async def asked() -> list[bool]:
        leases = Leases(cast("Any", Given()))
        held = (Lease(leases, str(number), "w1").hold(within=SOON * (number % 2)) for number in range(6))
        return await asyncio.gather(*held)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asked()) == [True] * 6


async def test_they_end_by_themselves_and_are_renewed(redis: Redis) -> None:
    one, two = Lease(Leases(redis), "lease", "w1"), Lease(Leases(redis), "lease", "w2")
    assert await one.hold(within=SOON)
    assert 0 < await redis.pttl("lease") <= TERM * 1000
    await redis.pexpire("lease", 500)
    one._held_since = None
    assert await one.hold(within=SOON)
    assert await redis.pttl("lease") > 500
    await redis.delete("lease")
    assert await two.hold(within=SOON)


async def test_who_is_in_a_hurry_takes_the_others_along(redis: Redis) -> None:
    leases = Leases(redis)
    waiting = asyncio.create_task(Lease(leases, "patient", "w1").hold(within=60))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await Lease(leases, "hurried", "w1").hold()
        assert await waiting


async def test_who_no_longer_waits_is_not_asked_for(redis: Redis) -> None:
    leases = Leases(redis)
    gone = asyncio.create_task(Lease(leases, "gone", "w1").hold(within=SOON))
    stays = asyncio.create_task(Lease(leases, "stays", "w1").hold(within=SOON))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays
    assert await redis.get("gone") is None


async def test_each_is_told_that_redis_is_away(start_redis) -> None:
    server = await start_redis()
    async with Redis.from_url(server.url, socket_timeout=2) as redis:
        leases = Leases(redis)
        server.kill()
        asked = [Lease(leases, f"lease-{number}", "w1").hold(within=SOON) for number in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(error, (RedisError, OSError)) for error in told), told


async def test_whoever_waits_when_it_stops_is_let_go(redis: Redis) -> None:
    leases = Leases(redis)
    waiting = asyncio.create_task(Lease(leases, "lease", "w1").hold(within=60))
    await asyncio.sleep(0)
    await leases.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 10)
    assert waiting.cancelled()
    assert await redis.get("lease") is None


@pytest.mark.parametrize("within", [0.0, SOON])
async def test_one_alone(redis: Redis, within: float) -> None:
    lease = Lease(Leases(redis), "lease", "w1")
    assert await lease.hold(within=within)
    assert (await redis.get("lease") or b"").startswith(b"w1.")
    await lease.give_up()
    assert await redis.get("lease") is None
