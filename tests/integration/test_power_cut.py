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
from broker_policy.jetstream import get_last
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from tests.dying import died, dying
from tests.load import Handling, audit_of
from tests.parts import Parts, parts
from tests.power import cut_after
from tests.system import mas

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


def agent(up: Parts, name: str) -> Handling:
    return Handling(name, server_addr=up.broker.url, tls=up.tls(name, NAMESPACE))


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


async def torn(up: Parts) -> dict[str, Any]:
    """A batch that is torn while its worker dies, and sent again; the audit by message id."""
    ids = [new_message_id() for _ in range(MESSAGES)]
    async with contextlib.AsyncExitStack() as stack:
        worker = await stack.enter_async_context(dying(up, "batch stored"))
        sender = await stack.enter_async_context(agent(up, "sender"))
        sending = asyncio.gather(*(sender.send("receiver", "work", {"n": 1}, id=each) for each in ids))
        await died(worker)
        await cut(up)
        assert not sending.done(), "somebody was told of what is not there"
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
