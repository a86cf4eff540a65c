"""A power cut while the server stores a batch: the audit says what is lacking, and it can be sent again.

Nothing completes the batch, since the server's folder for it is gone, as it is where that is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.audit import outcomes, projector
from broker_policy.audit.log import Stored
from broker_policy.audit.numbering import Received, receive
from broker_policy.audit.record import RecordKey
from broker_policy.backup import archive
from broker_policy.backup.errors import BackupInconsistent
from broker_policy.backup.restore import restore
from broker_policy.cli.app import ExitCode
from broker_policy.jetstream import get_last
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
        record = await get_last(nc, subjects.INBOX_STREAM, subjects.AUDIT_SUBJECTS)
        last = await get_last(nc, subjects.INBOX_STREAM, subjects.inbox("receiver"))
    assert record is not None
    assert last is not None
    assert last.headers[headers.BATCH_SEQUENCE] == str(MESSAGES + 1), "not one batch of all"
    up.nats.kill()
    cut_after(up.layout, record.sequence + LEFT)
    await up.nats.start()
    await up.provision()
    async with up.tenant(NAMESPACE) as nc:
        last = await get_last(nc, subjects.INBOX_STREAM, subjects.inbox("receiver"))
    assert last is not None
    assert last.sequence == record.sequence + LEFT


@contextlib.asynccontextmanager
async def cut_while_sending(up: Parts, ids: list[str]) -> AsyncIterator[asyncio.Future[list[str]]]:
    """Send until the worker has died with a batch, and cut the power; the block goes on sending."""
    async with dying(up, "batch stored") as worker, agent(up, "sender") as sender:
        sending = asyncio.gather(*(sender.send("receiver", "work", {"n": 1}, id=each) for each in ids))
        try:
            await died(worker)
            await cut(up)
            assert not sending.done(), "somebody was told of what is not there"
            yield sending
        finally:
            sending.cancel()


async def torn(up: Parts) -> dict[str, Any]:
    """A batch that is torn while its worker dies, and sent again; the audit by message id."""
    ids = [new_message_id() for _ in range(MESSAGES)]
    async with contextlib.AsyncExitStack() as stack:
        sending = await stack.enter_async_context(cut_while_sending(up, ids))
        await up.start_worker()
        assert list(await sending) == ids
        receiver = await stack.enter_async_context(agent(up, "receiver"))
        assert await receiver.wait_handled(set(ids), 30) == set()
        decisions = (await audit_of(up, NAMESPACE, set(ids)))["decisions"]
        assert receiver.handled == dict.fromkeys(ids, 1)
    return {each: [decision["outcome"] for decision in decisions[each]] for each in ids}


async def test_what_a_batch_lacks_after_a_power_cut_is_not_committed(up: Parts) -> None:
    told = await torn(up)
    ids = list(told)
    assert [told[each] for each in ids[:LEFT]] == [["h", "u"]] * LEFT
    assert [told[each][0] for each in ids[LEFT:]] == ["u"] * (MESSAGES - LEFT)  # sent again since
    assert [told[each][1] for each in ids[LEFT:]] == ["h"] * (MESSAGES - LEFT)
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
    told = await torn(up)
    assert any(outcome[0] in "ch" and "h" in outcome[1:] for outcome in told.values()), "each was stored once"


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
