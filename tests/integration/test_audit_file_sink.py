"""The copy in a file holds every entry in order, whatever ends the one who writes it or fills the disk."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from broker_policy.audit import file_sink, rotated_file
from broker_policy.audit.file_sink import FileCopy, FileSink
from broker_policy.audit.rotated_file import NotACopy, Place, RotatedFile
from broker_policy.audit.store import Store
from broker_policy.embedded.redis_server import RedisServer
from mas_nats.policy.governance import AuditSink
from tests.audit_fill import fill


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[Store]:
    redis = Redis.from_url(redis_server.url, socket_timeout=30)
    yield Store(redis, "default")
    await redis.aclose()


def copy(store: Store, path: Path, *, max_bytes: int = 10_000_000, backups: int = 5) -> FileCopy:
    return FileCopy(store, RotatedFile(path, "default", max_bytes=max_bytes, backups=backups))


async def write(copy_: FileCopy) -> None:
    while await copy_.write_some():
        pass


def lines(path: Path) -> list[dict[str, Any]]:
    """Everything in the file and those before it, oldest first."""
    found: list[dict[str, Any]] = []
    for number in range(99, 0, -1):
        rotated = path.with_name(f"{path.name}.{number}")
        if rotated.exists():
            found += map(orjson.loads, rotated.read_bytes().splitlines())
    return found + list(map(orjson.loads, path.read_bytes().splitlines()))


def indexes(path: Path) -> list[int]:
    return [line["e"]["i"] for line in lines(path) if "e" in line]


async def test_the_whole_chain_in_order_over_rotated_files(store: Store, tmp_path: Path) -> None:
    await fill(store, 2000)
    path = tmp_path / "new" / "audit.jsonl"
    await write(copy(store, path, max_bytes=60_000, backups=50))
    await fill(store, 500, seed=2, first=2000)
    await write(copy(store, path, max_bytes=60_000, backups=50))
    last = (await store.head()).index
    assert indexes(path) == list(range(1, last + 1))
    stored = [each async for each in store.entries()]
    assert [line["h"] for line in lines(path) if "e" in line] == [each.hash for each in stored]
    sizes = [each.stat().st_size for each in tmp_path.glob("new/audit.jsonl*")]
    assert len(sizes) > 10
    assert max(sizes) <= 60_000
    assert path.stat().st_mode & 0o777 == 0o600


async def test_no_more_files_than_asked_for(store: Store, tmp_path: Path) -> None:
    await fill(store, 2000)
    path = tmp_path / "audit.jsonl"
    await write(copy(store, path, max_bytes=60_000, backups=2))
    names = sorted(each.name for each in tmp_path.glob("audit*"))
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert indexes(path)[-1] == (await store.head()).index
    await write(copy(store, tmp_path / "one.jsonl", max_bytes=60_000, backups=0))
    assert indexes(tmp_path / "one.jsonl")[0] == 1


@pytest.mark.parametrize("cut", [1, 40, 5_000])
async def test_what_a_crash_cut_off_is_written_again(store: Store, tmp_path: Path, cut: int) -> None:
    await fill(store, 300)
    path = tmp_path / "audit.jsonl"
    await write(copy(store, path))
    os.truncate(path, path.stat().st_size - cut)
    await write(copy(store, path))
    assert indexes(path) == list(range(1, (await store.head()).index + 1))


async def test_a_file_that_was_emptied_beside_us_begins_anew(store: Store, tmp_path: Path) -> None:
    """As logrotate's copytruncate does: what was in the file is in the copy that it made."""
    await fill(store, 100)
    path = tmp_path / "audit.jsonl"
    running = copy(store, path)
    await write(running)
    first = await store.head()
    os.truncate(path, 0)
    await fill(store, 100, seed=2, first=100)
    await write(running)
    assert lines(path)[0]["after"] == [first.index, first.hash.hex()]
    await fill(store, 10, seed=3, first=200)
    await write(copy(store, path))  # a worker that starts
    assert indexes(path) == list(range(first.index + 1, (await store.head()).index + 1))


@pytest.mark.parametrize("crash", ["before the new file", "between the renames"])
async def test_a_crash_while_rotating(store: Store, tmp_path: Path, monkeypatch, crash: str) -> None:
    await fill(store, 1000)
    path = tmp_path / "audit.jsonl"

    class Killed(BaseException):
        pass

    real = RotatedFile._begin
    begun = 0

    def begin(self: RotatedFile, after: Place) -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            if crash == "between the renames":
                path.with_name("audit.jsonl.new").write_bytes(b'{"audit":"mas","na')
            raise Killed
        real(self, after)

    monkeypatch.setattr(RotatedFile, "_begin", begin)
    with pytest.raises(Killed):
        await write(copy(store, path, max_bytes=60_000, backups=50))
    assert not path.exists()
    await write(copy(store, path, max_bytes=60_000, backups=50))
    assert indexes(path) == list(range(1, (await store.head()).index + 1))


async def test_a_full_disk_is_an_alarm_and_then_nothing_is_missing(
    store: Store, tmp_path: Path, monkeypatch, caplog
) -> None:
    await fill(store, 1500)
    path = tmp_path / "audit.jsonl"
    full, failed, done = True, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = RotatedFile._write

    def write_half(self: RotatedFile, written: list[bytes]) -> None:
        if full and path.stat().st_size > 100_000:
            with path.open("ab") as file:
                file.write(written[0][:50])  # what fitted
            loop.call_soon_threadsafe(failed.set)
            raise OSError(28, "No space left on device")
        real(self, written)
        loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(RotatedFile, "_write", write_half)
    settings = AuditSink(file_path=str(path))
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(
            FileSink(store, lambda: settings, every=0.01, backoff=(0.01, 0.02)).run()
        )
        await asyncio.wait_for(failed.wait(), 10)
        await fill(store, 300, seed=2, first=1500)  # the chain goes on meanwhile
        last = (await store.head()).index
        full = False
        async with asyncio.timeout(10):
            while indexes_or_none(path) != list(range(1, last + 1)):
                done.clear()
                await done.wait()
        async with asyncio.timeout(10):
            while "written again" not in caplog.text:
                await asyncio.sleep(0.01)
        running.cancel()
    assert caplog.text.count("ALARM") == 1  # said once, not at every try
    assert "No space left" in caplog.text


def indexes_or_none(path: Path) -> list[int] | None:
    try:
        return indexes(path)
    except ValueError:
        return None


async def test_another_file_is_never_touched(store: Store, tmp_path: Path) -> None:
    await fill(store, 10)
    for content in (
        b"my diary\nunfinished",
        b'{"audit":"mas","namespace":"other","after":[0,""],"v":1}\n',
        b"none",
    ):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(NotACopy):
            await write(copy(store, path))
        assert path.read_bytes() == content


async def test_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    await fill(store, 2000)
    settings = AuditSink(file_path=str(tmp_path / "{namespace}.jsonl"))
    sinks = [asyncio.create_task(FileSink(store, lambda: settings, every=0.01).run()) for _ in range(2)]
    path, last = tmp_path / "default.jsonl", (await store.head()).index
    async with asyncio.timeout(20):
        while not path.exists() or (indexes_or_none(path) or [0])[-1] < last:
            await asyncio.sleep(0.02)
    for sink in sinks:
        sink.cancel()
    assert indexes(path) == list(range(1, last + 1))


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_while_writing_keeps_the_file_until_it_is_written(
    store: Store, tmp_path: Path, monkeypatch, fails: bool
) -> None:
    await fill(store, 100)
    path = tmp_path / "audit.jsonl"
    settings = AuditSink(file_path=str(path))
    loop, writing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = RotatedFile._write

    def held_up(self: RotatedFile, written: list[bytes]) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(30)
        if fails:
            raise OSError(28, "No space left on device")
        real(self, written)

    monkeypatch.setattr(RotatedFile, "_write", held_up)
    sink = asyncio.create_task(FileSink(store, lambda: settings).run())
    try:
        await asyncio.wait_for(writing.wait(), 10)
        for _ in range(2):
            sink.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not sink.done()
            with file_sink._locked(path) as taken:
                assert not taken
    finally:
        go_on.set()
    await asyncio.wait([sink])
    assert sink.cancelled()
    with file_sink._locked(path) as taken:
        assert taken
    monkeypatch.setattr(RotatedFile, "_write", real)
    await write(copy(store, path))
    assert indexes(path) == list(range(1, (await store.head()).index + 1))


async def test_entries_that_left_redis_are_named(store: Store, tmp_path: Path) -> None:
    await fill(store, 300)
    path = tmp_path / "audit.jsonl"
    await write(copy(store, path))
    before = (await store.head()).index
    await fill(store, 300, seed=2, first=300)
    await store.redis.xtrim(store.layout.chain, minid=f"{before + 50}-0", approximate=False)
    await write(copy(store, path))
    assert {"gap": [before + 1, before + 49]} in lines(path)
    assert indexes(path)[-1] == (await store.head()).index


async def test_an_older_redis_is_told_and_nothing_in_the_file_is_lost(
    store: Store, tmp_path: Path, caplog
) -> None:
    await fill(store, 100)
    kept = (await store.head()).index
    dump = {name: await store.redis.dump(name) async for name in store.redis.scan_iter()}
    await fill(store, 100, seed=2, first=100)
    path = tmp_path / "audit.jsonl"
    await write(copy(store, path))
    before = lines(path)
    await store.redis.flushall()
    for name, value in dump.items():
        await store.redis.restore(name, 0, value)
    await fill(store, 200, seed=3, first=100)
    await write(copy(store, path))
    after = lines(path)
    assert after[: len(before)] == before
    [fork] = [line["fork"] for line in after if "fork" in line]
    assert fork[0] == kept
    assert indexes(path)[-1] == (await store.head()).index
    assert "no longer has" in caplog.text


@pytest.mark.parametrize("hindered", ["", "one is missing", "one is another's"])
async def test_what_redis_lost_may_begin_in_a_file_before_this_one(
    store: Store, tmp_path: Path, hindered: str
) -> None:
    await fill(store, 300)
    kept = (await store.head()).index
    dump = {name: await store.redis.dump(name) async for name in store.redis.scan_iter()}
    await fill(store, 1500, seed=2, first=300)
    path = tmp_path / "audit.jsonl"
    await write(copy(store, path, max_bytes=60_000, backups=50))
    assert len(list(tmp_path.glob("audit.jsonl.*"))) > 5
    if hindered == "one is missing":  # a crash between two renames
        path.with_name("audit.jsonl.2").unlink()
    elif hindered:
        path.with_name("audit.jsonl.2").write_bytes(b"my diary")
    before = path.read_bytes()
    await store.redis.flushall()
    for name, value in dump.items():
        await store.redis.restore(name, 0, value)
    await fill(store, 20, seed=3, first=300)
    await write(copy(store, path, backups=50))  # it does not rotate now
    fork, *rest = map(orjson.loads, path.read_bytes()[len(before) :].splitlines())
    last = (await store.head()).index
    assert fork["fork"][0] == kept
    assert [line["e"]["i"] for line in rest] == list(range(kept + 1, last + 1))


PROCESS = """
import asyncio, sys
from redis.asyncio import Redis
from broker_policy.audit.file_sink import FileSink
from broker_policy.audit.store import Store
from mas_nats.policy.governance import AuditSink

async def main(url, path):
    settings = AuditSink(file_path=path, max_bytes=40_000, backup_count=90)
    await FileSink(Store(Redis.from_url(url), "default"), lambda: settings, every=0.01).run()

asyncio.run(main(*sys.argv[1:]))
"""


def size_of(path: Path) -> int:
    """While it is being rotated it may not be there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def test_killed_at_random_points(store: Store, tmp_path: Path, redis_server: RedisServer) -> None:
    path = tmp_path / "audit.jsonl"
    root = Path(__file__).parents[2]
    chosen = random.Random(5)
    for round_ in range(4):
        await fill(store, 1200, seed=round_, first=1200 * round_)
        process = subprocess.Popen([sys.executable, "-c", PROCESS, redis_server.url, str(path)], cwd=root)
        try:
            async with asyncio.timeout(20):
                size = size_of(path)
                while size_of(path) == size:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(chosen.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    await write(copy(store, path, max_bytes=40_000, backups=90))
    assert indexes(path) == list(range(1, (await store.head()).index + 1))


def test_backwards_is_the_reverse_of_forwards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rotated_file, "_BACK", 7)
    file = RotatedFile(tmp_path / "f", "default", max_bytes=10_000, backups=0)
    made = [orjson.dumps({"e": {"i": index}, "h": f"{index:x}"}) + b"\n" for index in range(1, 30)]
    file.append(made, Place())
    assert [each.index for each in file.backwards(file.path)] == [*range(29, 0, -1), 0]
    assert [each.index for each in file.all_backwards()] == [*range(29, 0, -1), 0]


def test_all_that_are_rotated_may_be_kept(tmp_path: Path) -> None:
    """However many are asked for, only those that there are take time."""
    file = RotatedFile(tmp_path / "f", "default", max_bytes=1, backups=10**12)
    (tmp_path / "1").touch()
    place = Place()
    for index in range(1, 8):
        entry = {"i": index, "f": "x" * 300}
        file.append([orjson.dumps({"e": entry, "h": f"{index:x}"}) + b"\n"], place)
        place = Place(index, f"{index:x}")
        if index == 4:
            file.numbered(2).rename(tmp_path / "gone")
    kept = sorted(each.name for each in tmp_path.iterdir() if each.name not in ("1", "gone"))
    assert kept == ["f", "f.1", "f.2", "f.3", "f.4", "f.5"]
    assert list(dict.fromkeys(each.index for each in file.all_backwards())) == [*range(7, -1, -1)]
