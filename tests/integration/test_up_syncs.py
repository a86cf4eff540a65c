"""Counting syncs: what is acknowledged was flushed before (DESIGN 8).

A killed process proves nothing here, since the system keeps its unflushed pages; only the syscalls do. The
relaxed profile is the control that shows that the count can fail.
"""

from __future__ import annotations

import re
import ssl

import pytest
from nats.js.api import StreamConfig
from redis.asyncio import Redis

from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import Identity, Role
from tests.syncs import Trace, watched

WRITES = 40


async def trace_of_nats(server, ca, tmp_path):
    paths = ca.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path / "client")
    context = ssl.create_default_context(cafile=str(paths.ca))
    context.load_cert_chain(paths.cert, paths.key)
    nc = ResilientClient()
    await nc.connect(server.url, tls=context, tls_hostname="localhost")
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="S", subjects=["s"]))
    async with watched(server.pid, tmp_path / "trace") as trace:
        for number in range(WRITES):
            await js.publish("s", str(number).encode())
    await nc.close()
    return trace


async def trace_of_redis(server, tmp_path):
    async with Redis.from_url(server.url) as client:
        await client.ping()
        async with watched(server.pid, tmp_path / "trace") as trace:
            for number in range(WRITES):
                await client.set("key", number)
    return trace


async def test_nats_flushes_before_each_acknowledgement(nats_server, ca, tmp_path):
    trace = await trace_of_nats(nats_server, ca, tmp_path)
    assert trace.syncs >= WRITES
    assert re.fullmatch("(s+a)+s*", trace.events), f"an answer without a sync before it: {trace.events}"


async def test_relaxed_nats_does_not(start_nats, ca, tmp_path):
    trace = await trace_of_nats(await start_nats(relaxed=True), ca, tmp_path)
    assert trace.events.count("a") >= WRITES
    assert trace.syncs < WRITES / 4


async def test_redis_flushes_before_each_answer(redis_server, tmp_path):
    trace = await trace_of_redis(redis_server, tmp_path)
    assert trace.syncs >= WRITES
    assert re.fullmatch("(s+a)+s*", trace.events), f"an answer without a sync before it: {trace.events}"


async def test_relaxed_redis_does_not(start_redis, tmp_path):
    trace = await trace_of_redis(await start_redis(relaxed=True), tmp_path)
    assert trace.events.count("a") >= WRITES
    assert trace.syncs < WRITES / 4


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("11 fsync(11</d/1.blk>) = 0", "s"),
        ("11 fsync(11</d/1.blk> <unfinished ...>", ""),
        ("11 <... fsync resumed>) = 0", "s"),
        ("11 <... fdatasync resumed>) = 0", "s"),
        ('11 write(10<TCP:[127.0.0.1:1->127.0.0.1:2]>, "+OK"..., 5) = 5', "a"),
        ('11 write(7<anon_inode:[eventfd]>, "x", 8) = 8', ""),
    ],
)
def test_the_trace_is_read_right(tmp_path, line, event):
    (tmp_path / "trace").write_text(line + "\n")
    assert Trace(tmp_path / "trace").events == event
