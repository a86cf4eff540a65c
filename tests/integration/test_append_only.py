"""A redis-server that was ended within a write: what it loads later is what it had, at every cut."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest
from redis.asyncio import Redis

from broker_policy import redis_starts
from broker_policy.embedded import redis_server as module
from broker_policy.embedded.append_only import cut_open_block
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.redis_starts import renew
from tests.parts import parts

SCRIPT = """
for number = 1, 40 do
  redis.call('RPUSH', KEYS[1], ARGV[1] .. ':' .. number)
end
redis.call('SET', KEYS[2], ARGV[1])
"""


async def write(redis: Redis, what: str) -> None:
    """One block of forty-one commands."""
    await redis.eval(SCRIPT, 2, "list", "last", what)


async def held(redis: Redis) -> tuple[list[bytes], bytes | None]:
    return await redis.lrange("list", 0, -1), await redis.get("last")


def file_of(server: RedisServer) -> Path:
    """What it appends to."""
    alone = server.folder / "appendonly.aof"
    return alone if alone.exists() else max((server.folder / "appendonlydir").glob("*.incr.aof"))


async def over_a_torn_write(server: RedisServer, cut: int) -> tuple[object, object]:
    """What it held after a start on a file that lacks its last ``cut`` bytes and one write more, and what
    it holds after the start after that."""
    server.kill()
    path = file_of(server)
    path.write_bytes(path.read_bytes()[:-cut])
    await server.start()
    async with Redis.from_url(server.url, socket_timeout=5) as redis:
        await write(redis, "after")
        before = await held(redis)
    server.kill()
    await server.start()
    async with Redis.from_url(server.url, socket_timeout=5) as redis:
        return before, await held(redis)


def all_of(*whats: str) -> tuple[list[bytes], bytes]:
    return [f"{what}:{number}".encode() for what in whats for number in range(1, 41)], whats[-1].encode()


@pytest.mark.parametrize("cut", [1, 14, 15, 50, 400, 1500, 0])
async def test_a_block_is_there_as_a_whole_or_not_at_all(redis_server: RedisServer, redis: Redis, cut: int):
    """0: anywhere."""
    await write(redis, "first")
    await write(redis, "second")
    before, after = await over_a_torn_write(redis_server, cut or random.randint(16, 1500))
    assert before == after == all_of("first", "after")


async def test_without_that_a_part_of_it_comes_back(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    """The control: what redis-server does by itself. Where it fails, redis-server cuts the block itself."""
    monkeypatch.setattr(module, "cut_open_block", lambda _: 0)
    await write(redis, "first")
    await write(redis, "second")
    before, after = await over_a_torn_write(redis_server, 400)
    assert before == all_of("first", "after")
    assert after != before


async def test_where_nobody_cut_the_file_it_is_written_anew_after_the_start(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The Redis of others: what it holds once a worker has seen it is what the next start loads."""
    monkeypatch.setattr(module, "cut_open_block", lambda _: 0)
    await write(redis, "first")
    await write(redis, "second")
    redis_server.kill()
    path = file_of(redis_server)
    path.write_bytes(path.read_bytes()[:-400])
    await redis_server.start()
    known = await renew(redis, "")
    async with asyncio.timeout(20):
        while (await redis.info("persistence"))["aof_last_rewrite_time_sec"] < 0:
            await asyncio.sleep(0.02)
    await write(redis, "after")
    redis_server.kill()
    await redis_server.start()
    assert await held(redis) == all_of("first", "after")
    # Another start is seen as one. Once for each: not by the next worker, nor where the file was looked at.
    with caplog.at_level(logging.INFO, redis_starts.__name__):
        assert await renew(redis, "", redis_server.folder) != known
        assert caplog.messages == []
        again = await renew(redis, known)
        async with asyncio.timeout(20):
            while (await redis.info("persistence"))["aof_last_rewrite_time_sec"] < 0:
                await asyncio.sleep(0.02)
        assert await renew(redis, "") == again
        assert caplog.messages == ["Redis has been started: it writes its append-only file anew"]


async def test_a_worker_looks_for_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_starts, "_EVERY", 0.05)
    async with parts(tmp_path) as up:
        url = up.workers[0]._config.redis_url
        async with Redis.from_url(url, socket_timeout=5) as redis, asyncio.timeout(30):
            await up.workers[0]._redis.ping()
            assert (await redis.info("persistence"))["aof_last_rewrite_time_sec"] < 0
            await up.start_worker(redis_folder=None)  # of a Redis that it knows nothing of
            while (await redis.info("persistence"))["aof_last_rewrite_time_sec"] < 0:
                await asyncio.sleep(0.02)
            up.redis_server.kill()
            await up.redis_server.start()
            while (await redis.info("persistence"))["aof_last_rewrite_time_sec"] < 0:
                await asyncio.sleep(0.02)


async def test_a_file_that_another_one_writes_is_left_alone(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Path] = []
    monkeypatch.setattr(module, "cut_open_block", lambda folder: asked.append(folder) or 0)
    twin = RedisServer(redis_server.folder, port=redis_server.port)
    twin._prepare()
    assert asked == []
    redis_server.kill()
    twin._prepare()
    assert asked == [redis_server.folder]


# -- the end of a file -------------------------------------------------------------------------------------
MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
SET = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\r\n\r\n"  # its value is the end of a line


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (SET, SET),
        (SET + MULTI + SET + EXEC, SET + MULTI + SET + EXEC),
        (SET + MULTI + SET + EXEC + SET, SET + MULTI + SET + EXEC + SET),
        (SET + MULTI, SET),
        (SET + MULTI + SET, SET),
        (SET + MULTI + SET + EXEC + MULTI + SET + EXEC[:-1], SET + MULTI + SET + EXEC),
        *((SET + MULTI + SET + SET[:length], SET) for length in range(1, len(SET))),
        # Within a value, which is no beginning.
        (b"*2\r\n$4\r\nECHO\r\n$22\r\n" + MULTI + b"and more\r\n", None),
        (b"*2\r\n$4\r\nECHO\r\n$19\r\n" + MULTI + b"more\r\n" + SET, None),
    ],
)
def test_only_an_open_block_is_cut(tmp_path: Path, content: bytes, kept: bytes | None):
    path = tmp_path / "appendonly.aof"
    path.write_bytes(content)
    kept = content if kept is None else kept
    assert cut_open_block(tmp_path) == len(content) - len(kept)
    assert path.read_bytes() == kept
    assert cut_open_block(tmp_path) == 0


def test_of_several_files_it_is_the_last_that_is_appended_to(tmp_path: Path):
    assert cut_open_block(tmp_path) == 0
    parts = tmp_path / "appendonlydir"
    parts.mkdir()
    assert cut_open_block(tmp_path) == 0
    (parts / "appendonly.aof.manifest").write_text(
        "file appendonly.aof.1.base.rdb seq 1 type b\n"
        "file appendonly.aof.4.incr.aof seq 4 type i\n"
        "file appendonly.aof.5.incr.aof seq 5 type i\n"
    )
    assert cut_open_block(tmp_path) == 0
    for number in (4, 5):
        (parts / f"appendonly.aof.{number}.incr.aof").write_bytes(SET + MULTI + SET)
    assert cut_open_block(tmp_path) == len(MULTI + SET)
    assert (parts / "appendonly.aof.4.incr.aof").read_bytes() == SET + MULTI + SET
    assert (parts / "appendonly.aof.5.incr.aof").read_bytes() == SET
