"""A record that only a newer version can read: left where it is, for a worker of that version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from broker_policy.audit import log
from broker_policy.audit import record as records
from broker_policy.audit.projector import Projector
from broker_policy.audit.record import NewerRecord, RecordKind, Way, digest
from broker_policy.audit.store import Store
from broker_policy.audit.verify import verify
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import publish
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from tests.audit_log import KEY, NAMESPACE, LogWriter, connect, line, make_streams

Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "key": lambda raw: raw.update(more=[1]),
    "key of a decision": lambda raw: raw["decisions"][0].update(mood="good"),
    "version": lambda raw: raw.update(v=2),
    "kind": lambda raw: raw.update(kind="chapter"),
    "way": lambda raw: raw["decisions"][0].update(way="pigeon"),
    "outcome": lambda raw: raw.update(settled=[[1, 0, "z", 0]]),
    "longer settlement": lambda raw: raw.update(settled=[[1, 0, "h", 0, "more"]]),
}


@pytest.fixture
async def nc(nats_server: NatsServer, ca: CertificateAuthority, tmp_path: Path) -> AsyncIterator[Client]:
    worker = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.POLICY, "worker")
    client = await connect(nats_server, ca.issue(worker, tmp_path / "certificate"))
    await make_streams(client)
    yield client
    await client.close()


async def put_newer(writer: LogWriter, change: Change, *, mac: str | None = None) -> int:
    """What a newer worker writes next; its log sequence."""
    record = writer.record(RecordKind.DECISIONS, decisions=(line(),))
    raw = orjson.loads(record.encode())
    change(raw)
    body = orjson.dumps(raw)
    writer.number, writer.previous = record.number, digest(body)
    fields = {headers.RECORD_MAC: KEY.mac(body) if mac is None else mac}
    subject = subjects.audit_record(writer.name, record.number)
    return (await publish(writer.nc, subject, body, fields)).sequence


async def project(projector: Projector) -> None:
    while await projector.project_once():
        pass


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_it_is_neither_marked_nor_passed_over(nc: Client, redis: Redis, change: Change) -> None:
    projector = Projector(NAMESPACE, nc, redis, KEY)
    writer = await LogWriter(nc).open()
    before = await writer.batch([line(Way.BATCH)])
    newer = await put_newer(writer, change)
    await writer.batch([line(Way.BATCH)])
    for _ in range(2):
        with pytest.raises(NewerRecord):
            await project(projector)
    assert (await Store(redis, NAMESPACE).head()).sequence == before
    await projector.remove_projected()
    assert (await log.read(nc, newer, most=1)).messages[0].sequence == newer
    report = await verify(Store(redis, NAMESPACE), None, [])
    assert report.findings == []
    assert report.decisions == 1


async def test_a_newer_worker_goes_on_from_there(
    nc: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The older one says so and lets go of the lease."""
    writer = await LogWriter(nc).open()
    await put_newer(writer, CHANGES["key"])
    last = await writer.batch([line(Way.BATCH)])
    older = Projector(NAMESPACE, nc, redis, KEY, interval=0.02, name="older")
    store = Store(redis, NAMESPACE)
    with caplog.at_level(logging.CRITICAL):
        running = asyncio.create_task(older.run())
        async with asyncio.timeout(10):
            while not caplog.records or await redis.exists(store.layout.lease):
                await asyncio.sleep(0.02)
    assert "newer version" in caplog.text
    monkeypatch.setattr(records, "_KEYS", records._KEYS | {"more"})
    newer = Projector(NAMESPACE, nc, redis, KEY, name="newer")
    await project(newer)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await store.head()).sequence == last
    report = await verify(store, None, [])
    assert (report.findings, report.decisions) == ([], 2)


async def test_a_forged_one_stops_nobody(nc: Client, redis: Redis) -> None:
    """The control: without a worker's MAC the same bytes are damage, and the projector goes on."""
    projector = Projector(NAMESPACE, nc, redis, KEY)
    writer = await LogWriter(nc).open()
    await put_newer(writer, CHANGES["version"], mac="0" * 64)
    await project(projector)
    entries = [stored.entry() async for stored in Store(redis, NAMESPACE).entries()]
    assert [entry["e"] for entry in entries if entry["k"] == "a"] == ["unreadable"]
