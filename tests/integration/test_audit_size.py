"""What an entry costs in Redis, with all its indexes."""

from __future__ import annotations

from redis.asyncio import Redis

from broker_policy.audit.layout import SHARDS
from broker_policy.audit.store import Store
from broker_policy.embedded.redis_server import RedisServer
from tests.audit_fill import fill


async def used(redis: Redis) -> int:
    memory = await redis.info("memory")
    return int(memory["used_memory"]) - int(memory["mem_aof_buffer"])


async def test_an_entry_costs_at_most_500_bytes(redis_server: RedisServer, capsys) -> None:
    """Ids of 32 digits, names of 8 letters, certificate and commitment in each: as agents make them."""
    redis = Redis.from_url(redis_server.url, socket_timeout=60)
    store = Store(redis, "default")
    before = await used(redis)
    measured = []
    for first, count in ((0, 1_000), (1_000, 99_000)):
        await fill(store, count, seed=first, first=first)
        measured.append((await used(redis) - before) / (await store.head()).index)
    ids = [key async for key in redis.scan_iter("mas:audit:default:id:*", count=5_000)]
    await redis.aclose()
    with capsys.disabled():
        print(f"\n{measured[0]:.0f} bytes an entry with 1,000 decisions, {measured[1]:.0f} with 100,000")
    assert measured[1] < 500
    # What a small audit costs more is the keys of the message ids: their number is bounded.
    assert measured[0] < 750
    assert len(ids) <= SHARDS
