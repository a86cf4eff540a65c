"""A power cut while the server stores a batch: the audit says what is lacking, and it can be sent again.

Nothing completes the batch, since the server's folder for it is gone, as it is where that is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from broker_policy.audit import outcomes, projector
from broker_policy.audit.log import Stored, last_sequence
from broker_policy.audit.numbering import Received, receive
from broker_policy.audit.record import RecordKey
from broker_policy.backup import archive
from broker_policy.backup.errors import BackupInconsistent
from broker_policy.backup.restore import restore
from broker_policy.cli.app import ExitCode
from broker_policy.commit.behind import Behind
from broker_policy.commit.lone import Lone
from broker_policy.commit.writer import RecordWriter
from broker_policy.jetstream import get_last, get_message
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from tests.dying import died, dying
from tests.load import Handling, audit_of
from tests.packed import packed
from tests.parts import Parts, parts
from tests.power import cut_after
from tests.system import System, mas

MESSAGES = 40
LEFT = 15
NAMESPACE = "default"


@pytest.fixture
async def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parts]:
    """Servers without a worker."""
    monkeypatch.setattr(outcomes, "SILENT", 2.0)  # seconds after which a writer counts as dead
    async with parts(tmp_path, workers=0) as running:
        await running.namespace(["sender", "receiver"], {"sender": ["receiver"]}, name=NAMESPACE)
        yield running


def agent(up: Parts, name: str, at: System | None = None) -> Handling:
    return Handling(name, server_addr=(at or up).broker.url, tls=up.tls(name, NAMESPACE))


async def cut(up: Parts) -> None:
    """Cut the power: the record of the last batch is left, and ``LEFT`` messages."""
    async with up.tenant(NAMESPACE) as nc:
        last = await get_last(nc, subjects.INBOX_STREAM, subjects.inbox("receiver"))
        assert last is not None
        assert last.headers[headers.BATCH_SEQUENCE] == str(MESSAGES + 1), "not one batch of all"
        assert await last_sequence(nc) == last.sequence, "this would be lost though it was acknowledged"
    record = last.sequence - MESSAGES
    up.nats.kill()
    cut_after(up.layout, record + LEFT)
    await up.nats.start()
    await up.provision()
    async with up.tenant(NAMESPACE) as nc:
        left = await get_message(nc, subjects.INBOX_STREAM, record + LEFT)
        behind = await get_message(nc, subjects.INBOX_STREAM, record + LEFT + 1)
    assert left is not None
    assert left.headers[headers.BATCH_SEQUENCE] == str(LEFT + 1)
    assert behind is None or headers.BATCH_SEQUENCE not in behind.headers


@contextlib.asynccontextmanager
async def cut_while_sending(
    up: Parts, ids: list[str], beside: Beside | None = None
) -> AsyncIterator[asyncio.Future[list[str]]]:
    """Send until the worker has died with a batch, and cut the power; the block goes on sending."""
    async with dying(up, "batch stored") as worker, agent(up, "sender") as sender:
        if beside is not None:
            await asyncio.wait_for(beside.at_rest(), 20)
        sending = asyncio.gather(*(sender.send("receiver", "work", {"n": 1}, id=each) for each in ids))
        try:
            await died(worker)
            await cut(up)
            assert not sending.done(), "somebody was told of what is not there"
            yield sending
        finally:
            sending.cancel()


async def torn(up: Parts, beside: Beside | None = None) -> tuple[list[str], dict[str, list[str]]]:
    """A batch that is torn while its worker dies, and sent again: its ids, and the audit by message id.

    ``beside``: a message that another worker has under way at that time.
    """
    ids = [new_message_id() for _ in range(MESSAGES)]
    everything = {*ids, *([beside.id] if beside else [])}
    async with contextlib.AsyncExitStack() as stack:
        sending = await stack.enter_async_context(cut_while_sending(up, ids, beside))
        if beside is not None:
            await asyncio.wait_for(beside.stored.wait(), 20)
        await up.start_worker()
        assert list(await sending) == ids
        receiver = await stack.enter_async_context(agent(up, "receiver"))
        assert await receiver.wait_handled(everything, 30) == set()
        decisions = (await audit_of(up, NAMESPACE, everything))["decisions"]
        assert receiver.handled == dict.fromkeys(everything, 1)
    return ids, {each: [decision["outcome"] for decision in decisions[each]] for each in everything}


def assert_true(ids: list[str], told: dict[str, list[str]]) -> None:
    """What was left is what the audit says was left."""
    assert [told[each] for each in ids[:LEFT]] == [["h", "u"]] * LEFT
    assert [told[each][0] for each in ids[LEFT:]] == ["u"] * (MESSAGES - LEFT)  # sent again since
    assert [told[each][1] for each in ids[LEFT:]] == ["h"] * (MESSAGES - LEFT)


async def test_what_a_batch_lacks_after_a_power_cut_is_not_committed(up: Parts) -> None:
    assert_true(*await torn(up))
    verified = mas("audit", "verify", "--folder", str(up.layout.root), "--namespace", NAMESPACE)
    assert verified.returncode == 0, verified.stdout


async def test_a_projector_that_believes_every_batch_would_be_found(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the test above would see."""

    def believing(stored: Stored, namespace: str, key: RecordKey, _: Stored | None) -> Received:
        return receive(stored, namespace, key)

    async def ended(_: projector.Projector, last: Received) -> Received:
        return last

    monkeypatch.setattr(projector, "receive", believing)
    monkeypatch.setattr(projector.Projector, "_ended", ended)
    _, told = await torn(up)
    assert any(outcome[0] in "ch" and "h" in outcome[1:] for outcome in told.values()), "each was stored once"


class Beside:
    """A worker that sends one message only once the power is cut: as soon as the server is back.

    Nothing is projected before that: neither the whole batch, nor what is left of it with nothing behind.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.id = new_message_id()
        self.recorded, self.stored = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(outcomes, "SILENT", 5.0)  # it lives
        monkeypatch.setattr(Behind, "publish", AsyncMock(return_value=None))
        each, look = Lone.each, projector.Projector._round

        async def later(projecting: projector.Projector) -> int:
            return await look(projecting) if self.stored.is_set() else 0

        monkeypatch.setattr(projector.Projector, "_round", later)

        async def late(lone: Lone, *arguments: Any) -> None:
            if first := not self.recorded.is_set():
                self.recorded.set()
                while lone._nc.is_connected:
                    await asyncio.sleep(0.01)
            await each(lone, *arguments)
            if first:
                self.stored.set()

        monkeypatch.setattr(Lone, "each", late)

    async def decide(self, up: Parts) -> None:
        """Have it decided and not sent by a worker that takes nothing else. Its sender does not repeat it."""
        worker = await up.start_worker()
        async with agent(up, "sender") as sender:
            sending = asyncio.create_task(sender.send("receiver", "work", {"n": 0}, id=self.id))
            await asyncio.wait_for(self.recorded.wait(), 20)
            sending.cancel()
        self.service = worker._namespaces[NAMESPACE].service
        await self.service._subscription.unsubscribe()

    async def at_rest(self) -> None:
        """Wait until it has nothing else to write."""
        writers = [getattr(part, "_writer", None) for part in vars(self.service).values()]
        writers = [each for each in writers if isinstance(each, RecordWriter)]
        writers.remove(self.service._inbox._writer)
        while any(writer.owes for writer in writers):
            await asyncio.sleep(0.05)


async def test_what_another_worker_had_under_way_is_not_taken_for_what_is_lacking(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(monkeypatch)
    await beside.decide(up)
    ids, told = await torn(up, beside)
    assert_true(ids, told)
    assert told[beside.id] == ["h"]


async def test_what_does_not_follow_its_connection_would_be_found(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: sent behind the batch, it is taken for the first message that the batch lacks."""

    async def at_once(_: RecordWriter) -> None:
        return

    monkeypatch.setattr(RecordWriter, "follow_connection", at_once)
    beside = Beside(monkeypatch)
    await beside.decide(up)
    ids, told = await torn(up, beside)
    assert told[ids[LEFT]][0] in "ch"


async def test_what_a_power_cut_left_can_be_backed_up(up: Parts, tmp_path: Path) -> None:
    """Before anything runs again; a copy that holds half a batch for another reason is refused."""
    ids = [new_message_id() for _ in range(MESSAGES)]
    async with cut_while_sending(up, ids):
        await up.nats.stop()
        await up.redis_server.stop()
    (passphrase := tmp_path / "passphrase").write_text("a passphrase of some length")
    file, target = tmp_path / "backup", tmp_path / "restored" / ".mas"
    options = ("--passphrase-file", str(passphrase))
    taken = await asyncio.to_thread(
        mas, "backup", str(file), "--folder", str(up.layout.root), *options, check=False
    )
    assert taken.returncode == ExitCode.ALTERED, taken.stderr
    assert "DOES NOT AGREE: default: the log ends within the batch of record" in taken.stdout
    archive.read(file, passphrase.read_text(), tmp_path / "unpacked")
    unnamed = packed(tmp_path / "unpacked", tmp_path / "unnamed")
    with pytest.raises(BackupInconsistent, match="the log ends within the batch"):
        await restore(unnamed, tmp_path / "refused" / ".mas", None)
    await asyncio.to_thread(mas, "restore", str(file), "--folder", str(target), *options)
    restored = await asyncio.to_thread(System.up, target)
    try:
        async with agent(up, "sender", at=restored) as sender, agent(up, "receiver", at=restored) as receiver:
            sent = [sender.send("receiver", "work", {"n": 1}, id=each) for each in ids]
            assert list(await asyncio.gather(*sent)) == ids
            assert await receiver.wait_handled(set(ids), 30) == set()
            assert receiver.handled == dict.fromkeys(ids, 1)
    finally:
        await asyncio.to_thread(restored.down)
