"""What the feed counts, also of decisions that it does not keep."""

from __future__ import annotations

from redis.asyncio import Redis

from broker_policy.audit.store import Store
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.explorer.feed import WINDOW, Feed
from tests.explorer.entries import a_line, decided

MANY = 2_000


async def test_rates_are_of_all_decisions_of_the_minute(redis_server: RedisServer):
    line, refused = a_line("note", "send"), a_line("note", "send", refused="blocked_targets")
    now = line.time / 1000
    async with Redis.from_url(redis_server.url, socket_timeout=30) as redis:
        store = Store(redis, "default")
        feed = Feed(store, clock=lambda: now)
        for second in range(3):
            made = [line._replace(time=line.time + second * 1000)] * MANY
            await decided(store, *made, refused._replace(time=line.time + second * 1000))
            await feed.catch_up()
        assert len(feed.kept()) == 5_000
        now += 2.5
        allowed, rule = ("ALLOWED", "permissions", False), ("AUTHZ_DENIED", "blocked_targets", True)
        assert feed.counted() == {allowed: 3 * MANY, rule: 3}
        assert [each["refused"] for each in feed.per_second()[-2:]] == [1, 1]
        now += 1
        shown = [{"allowed": MANY, "refused": 1}] * 3
        assert [each for each in feed.per_second() if each["allowed"]] == shown
        now += WINDOW
        await feed.catch_up()
        assert not feed.counted()
        assert len(feed.per_second()) == WINDOW
