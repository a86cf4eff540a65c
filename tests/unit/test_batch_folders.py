"""Batches are gathered in memory; one that was being stored when the server died is completed anyway."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import types
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig

from broker_policy.backup.staging import files as backed_up
from broker_policy.embedded import batch_folders
from broker_policy.embedded.batch_folders import BatchFolders
from broker_policy.embedded.nats_server import NatsServer, server_name
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import stream_info
from mas_nats.wire import headers
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.subjects import INBOX_STREAM
from tests.audit_log import connect
from tests.conftest import StartNats
from tests.small_disk import fill, small_disk

MESSAGES = 900
TRIES = 40


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's folder with the stream of one account."""
    made = tmp_path / "nats"
    (made / "jetstream" / "ACCOUNT" / "streams" / INBOX_STREAM / "msgs").mkdir(parents=True)
    (made / "jetstream" / "ACCOUNT" / "streams" / "KV_other").mkdir()
    return made


def batches(folder: Path, account: str = "ACCOUNT") -> Path:
    return folder / "jetstream" / account / "streams" / INBOX_STREAM / "batches"


def place(memory: Path, folder: Path, account: str = "ACCOUNT") -> Path:
    return memory / server_name(folder) / f"{account}.{INBOX_STREAM}"


# -- the links ----------------------------------------------------------------------------------------------
def test_a_stream_is_linked_to_a_private_place(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    assert batches(folder).readlink() == place(memory, folder)
    assert place(memory, folder).stat().st_mode & 0o777 == 0o700
    assert place(memory, folder).parent.stat().st_mode & 0o777 == 0o700
    assert not (batches(folder).parents[1] / "KV_other" / "batches").exists()


def test_what_is_linked_stays_with_what_is_in_it(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    (batches(folder) / "batch").mkdir()
    assert folders.link()
    assert (place(memory, folder) / "batch").is_dir()


def test_a_folder_in_use_is_left_until_it_is_empty(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    (batches(folder) / "batch").mkdir(parents=True)
    assert not folders.link()
    assert (batches(folder) / "batch").is_dir()
    assert not batches(folder).is_symlink()
    (batches(folder) / "batch").rmdir()
    assert folders.link()
    assert batches(folder).is_symlink()


def test_after_a_start_of_the_server_nothing_old_is_left_in_memory(folder: Path, memory: Path) -> None:
    """The server removes the link when it starts, and what it could complete is complete then."""
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    (batches(folder) / "never committed").mkdir()
    batches(folder).unlink()
    assert folders.link()
    assert not list(batches(folder).iterdir())


@pytest.mark.parametrize("target", ["gone", "elsewhere"])
def test_another_link_is_replaced(folder: Path, memory: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    batches(folder).symlink_to(tmp_path / target)
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    assert batches(folder).readlink() == place(memory, folder)
    assert (tmp_path / "elsewhere").is_dir()


def test_a_link_whose_place_was_removed_works_again(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    shutil.rmtree(place(memory, folder))
    assert folders.link()
    assert batches(folder).is_dir()


def test_a_place_that_others_may_enter_is_not_used(folder: Path, memory: Path) -> None:
    (memory / server_name(folder)).mkdir(mode=0o755)
    assert not BatchFolders(folder, memory=memory).prepare()


def test_a_place_that_somebody_put_there_is_not_used(folder: Path, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (memory / server_name(folder)).symlink_to(tmp_path / "theirs")
    assert not BatchFolders(folder, memory=memory).prepare()


def test_where_there_is_no_memory_to_be_had_nothing_is_linked(folder: Path, tmp_path: Path) -> None:
    assert not BatchFolders(folder, memory=tmp_path / "missing").prepare()


def test_at_the_end_only_what_is_empty_is_removed(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    (batches(folder) / "being stored").mkdir()
    folders.remove()
    assert (batches(folder) / "being stored").is_dir()
    (batches(folder) / "being stored").rmdir()
    folders.remove()
    assert not list(memory.iterdir())
    assert not batches(folder).is_symlink()


def test_what_a_stopped_server_left_is_no_obstacle_to_a_backup(folder: Path, memory: Path) -> None:
    """Of one that was killed, before its machine was: the link leads nowhere."""
    (batches(folder).parent / "msgs" / "1.blk").write_bytes(b"message")
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    shutil.rmtree(memory)
    assert [Path(name).name for name in backed_up(folder.parent)] == ["1.blk"]


def test_a_disk_that_is_not_mounted_is_not_left_out_of_a_backup(folder: Path, tmp_path: Path) -> None:
    (batches(folder).parent / "msgs" / "1.blk").symlink_to(tmp_path / "not mounted")
    assert [Path(name).name for name in backed_up(folder.parent)] == ["1.blk"]


async def test_a_place_that_vanished_is_made_again_and_another_s_is_not_taken(
    folder: Path, memory: Path
) -> None:
    folders = BatchFolders(folder, memory=memory)
    following = asyncio.create_task(folders.follow())
    try:
        async with asyncio.timeout(10):
            while not batches(folder).is_dir():
                await asyncio.sleep(0.02)
            shutil.rmtree(memory / server_name(folder))
            while not batches(folder).is_dir():
                await asyncio.sleep(0.02)
        shutil.rmtree(memory / server_name(folder))
        (memory / server_name(folder)).mkdir()
        (memory / server_name(folder)).chmod(0o777)
        await asyncio.sleep(1.5)  # more than one look
        assert not batches(folder).is_dir()
    finally:
        following.cancel()


class Room:
    """How much is free in memory, as a test has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 30
        monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=self.free))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


@contextlib.asynccontextmanager
async def followed(folders: BatchFolders, stream: Path):
    """From when on the folder ``stream`` is linked."""
    following = asyncio.create_task(folders.follow())
    try:
        async with asyncio.timeout(10):
            while not stream.is_dir():
                await asyncio.sleep(0.02)
            yield
    finally:
        following.cancel()


async def test_while_memory_is_short_batches_are_gathered_on_the_disk(
    folder: Path, memory: Path, room: Room
) -> None:
    async with followed(BatchFolders(folder, memory=memory), batches(folder)):
        (batches(folder) / "batch").mkdir()
        room.free = 8 << 20
        await asyncio.sleep(1.5)  # more than one look: one that fits is left in peace
        assert (batches(folder) / "batch").is_dir()
        (batches(folder) / "batch").rmdir()
        while batches(folder).is_symlink():
            await asyncio.sleep(0.02)
        room.free = 24 << 20  # not enough to begin again
        await asyncio.sleep(1.5)
        assert not batches(folder).is_symlink()
        room.free = 64 << 20
        while not batches(folder).is_symlink():
            await asyncio.sleep(0.02)


async def test_a_batch_that_stays_in_a_full_memory_keeps_others_from_the_disk_only_for_moments(
    folder: Path, memory: Path, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_folders, "_FORGOTTEN", 1.0)
    async with followed(BatchFolders(folder, memory=memory), batches(folder)):
        left = batches(folder).resolve() / "did not fit"
        left.mkdir()
        room.free = 0
        while batches(folder).is_symlink():
            await asyncio.sleep(0.02)
        assert left.is_dir(), "the server may be at it still"
        while left.exists():  # or a small memory would be short for ever
            await asyncio.sleep(0.02)


async def test_what_is_left_in_memory_is_not_removed_while_it_is_linked(folder: Path, memory: Path) -> None:
    folders = BatchFolders(folder, memory=memory)
    assert folders.prepare()
    assert folders.link()
    (batches(folder) / "batch").mkdir()
    folders.discard()
    assert (batches(folder) / "batch").is_dir()
    folders.unlink(in_use=True)
    folders.discard()
    assert not list((memory / server_name(folder)).iterdir())


# -- a real server ------------------------------------------------------------------------------------------
class Batching:
    """A server with a stream for batches, whose places are in memory."""

    def __init__(self, server: NatsServer, memory: Path, ca: CertificateAuthority, folder: Path) -> None:
        self.server = server
        self.folders = BatchFolders(server.folder, memory=memory)
        self.memory = memory
        self.identity = ca.issue(Identity("mas", "default", Role.POLICY, "worker"), folder / "worker")
        self._wait = 0.002  # seconds until a batch that was written is being stored, as far as was found out

    @contextlib.asynccontextmanager
    async def connected(self):
        nc = await connect(self.server, self.identity)
        try:
            yield nc
        finally:
            await nc.close()

    async def make(self) -> None:
        async with self.connected() as nc:
            config = StreamConfig(INBOX_STREAM, subjects=["a"], storage=StorageType.FILE, allow_atomic=True)
            await nc.jetstream().add_stream(config)
        assert self.folders.prepare()
        assert self.folders.link()

    async def last(self) -> int:
        async with self.connected() as nc:
            return int((await stream_info(nc, INBOX_STREAM))["state"]["last_seq"])

    async def hand_over(self, nc: Client, batch: str, count: int) -> None:
        """A whole batch; returns when it is written, so that the server reads it, and then stores it."""
        for number in range(1, count + 1):
            fields = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(number)}
            if number == count:
                fields[headers.BATCH_COMMIT] = "1"
            await nc.publish("a", b"x" * 1000, headers=fields)
        await nc._flush_pending()
        await asyncio.sleep(0)

    async def killed_within(self, batch: str, *, lost: bool) -> int:
        """How many messages of a batch are there after the server was killed. ``lost``: the memory too."""
        before = await self.last()
        async with self.connected() as nc:
            await self.hand_over(nc, batch, MESSAGES)
            await asyncio.sleep(self._wait * random.uniform(0.5, 1.5))
            self.server.kill()
            await self.server.process.wait()
        if lost:
            shutil.rmtree(self.memory / server_name(self.server.folder))
        await self.server.start()
        assert self.folders.prepare()
        assert self.folders.link()
        there = await self.last() - before
        if there == 0:  # too early
            self._wait = 1.3 * self._wait + 0.0001
        elif there == MESSAGES:  # too late, or completed by the start
            self._wait /= 1.3
        return there

    @property
    def completed(self) -> bool:
        """Whether a start of the server completed a batch."""
        return "Restoring partial batch write" in self.server.log.read_text()


@pytest.fixture
async def batching(start_nats: StartNats, ca: CertificateAuthority, memory: Path, tmp_path: Path) -> Batching:
    made = Batching(await start_nats(), memory, ca, tmp_path)
    await made.make()
    return made


async def batch_of_two(nc: Client, batch: str) -> bytes:
    await nc.publish("a", b"one", headers={headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: "1"})
    fields = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: "2", headers.BATCH_COMMIT: "1"}
    return (await nc.request("a", b"two", headers=fields)).data


async def test_a_running_server_gathers_on_the_disk_again(batching: Batching) -> None:
    [account] = (batching.server.folder / "jetstream").iterdir()
    async with batching.connected() as nc:
        assert b'"count":2' in await batch_of_two(nc, "b1")
        assert batching.folders.unlink()
        assert b'"count":2' in await batch_of_two(nc, "b2")
        assert not batches(batching.server.folder, account.name).is_symlink()
        await nc.request("a", b"one", headers={headers.BATCH_ID: "b3", headers.BATCH_SEQUENCE: "1"})
        assert list(batches(batching.server.folder, account.name).rglob("*.blk"))
        assert not list(place(batching.memory, batching.server.folder, account.name).parent.iterdir())


async def test_what_a_full_memory_refuses_is_no_harm_to_later_batches(batching: Batching) -> None:
    """The place goes while a batch is in it, as after moments with no room."""
    async with batching.connected() as nc:
        await nc.request("a", b"one", headers={headers.BATCH_ID: "b1", headers.BATCH_SEQUENCE: "1"})
        assert not batching.folders.unlink()
        assert batching.folders.unlink(in_use=True)
        assert b'"count":2' in await batch_of_two(nc, "b2")
        fields = {headers.BATCH_ID: "b1", headers.BATCH_SEQUENCE: "2", headers.BATCH_COMMIT: "1"}
        answer = (await nc.request("a", b"two", headers=fields)).data
        assert b'"count":2' in answer or b'"error"' in answer
        assert b'"count":2' in await batch_of_two(nc, "b3")
    assert await batching.last() in (4, 6)


async def test_a_memory_that_others_fill_is_left(
    start_nats: StartNats, ca: CertificateAuthority, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 40) as memory:
        batching = Batching(await start_nats(), memory, ca, tmp_path)
        await batching.make()
        [account] = (batching.server.folder / "jetstream").iterdir()
        linked = batches(batching.server.folder, account.name)
        async with followed(batching.folders, linked), batching.connected() as nc:
            assert b'"count":2' in await batch_of_two(nc, "before")
            fill(memory, leave=0)
            refused = 0
            while b'"count":2' not in await batch_of_two(nc, f"refused{refused}"):
                refused += 1
                await asyncio.sleep(0.01)
            for number in range(60):
                assert b'"count":2' in await batch_of_two(nc, f"later{number}"), "refused again"
    assert refused > 50, "there was room after all"  # the server allows fifty at once


async def test_the_server_gathers_in_memory(batching: Batching) -> None:
    [account] = (batching.server.folder / "jetstream").iterdir()
    there = place(batching.memory, batching.server.folder, account.name)
    async with batching.connected() as nc:
        fields = {headers.BATCH_ID: "b", headers.BATCH_SEQUENCE: "1"}
        await nc.request("a", b"one", headers=fields)
        assert list(there.rglob("*.blk"))
        fields = {headers.BATCH_ID: "b", headers.BATCH_SEQUENCE: "2", headers.BATCH_COMMIT: "1"}
        answer = await nc.request("a", b"two", headers=fields)
    assert b'"count":2' in answer.data
    assert await batching.last() == 2
    assert not list(there.iterdir())


@pytest.mark.slow
async def test_a_batch_is_whole_or_not_there_after_its_server_was_killed(batching: Batching) -> None:
    for number in range(TRIES):
        assert await batching.killed_within(f"b{number}", lost=False) in (0, MESSAGES)
        if batching.completed and number >= 10:
            return
    raise AssertionError(f"in {TRIES} tries no server was killed while it stored a batch")


@pytest.mark.slow
async def test_with_the_memory_lost_too_a_batch_can_be_torn(batching: Batching) -> None:
    """The control, and what a power cut does: the projector has to find it out (test_power_cut.py)."""
    for number in range(TRIES):
        if await batching.killed_within(f"b{number}", lost=True) not in (0, MESSAGES):
            return
    raise AssertionError(f"in {TRIES} tries no batch was torn, so the test above shows nothing")
