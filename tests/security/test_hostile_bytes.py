"""Bytes that no client library sends: they must not silence a policy worker (promise 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mas_nats.config import Endpoint
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Verdict
from tests.parts import Parts, parts

SUBJECTS = [
    b"mas.call.mallory.\xff\xfe",
    b"mas.call.mallory.\x0b1",  # nats-py: the subject ends at the tab, the rest is the number
    b"mas.call.mallory.x\x0b2",
    b"mas.call.mallory.\x0c",
    b"mas.call.mallory.unknown",
    b"mas.call.mallory.send\x00",
]
HEADERS = [
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 100 \xff\xff\r\n\r\n",
    b"NATS/1.0 100 x\r\n\xff\xfe: a\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0",
    b"NATS/1.0 ",
    b"N",
    b"\xff" * 40,
    b"NATS/1.0\r\nMas-Type\r\n: x\r\n\x00\r\n\r\n",
    b"NATS/1.0\r\nMas-Type: " + b"x" * 60_000 + b"\r\n\r\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture
async def up(folder: Path) -> AsyncIterator[Parts]:
    async with parts(folder) as running:
        yield running


async def raw(up: Parts, agent: str, namespace: str) -> ResilientClient:
    client = ResilientClient()
    endpoint = Endpoint(up.broker.url, up.tls(agent, namespace))

    async def ignore(_: Exception) -> None:
        return None

    await client.connect_within(10, servers=[endpoint.url], tls=endpoint.context(), error_cb=ignore)
    return client


async def write(client: ResilientClient, line: bytes) -> None:
    """Put a protocol line on the wire as it is."""
    await client._send_command(line)
    await client.flush()


async def test_a_worker_goes_on_reading(up: Parts) -> None:
    namespace = await up.namespace(["mallory", "victim"], {"victim": ["mallory"]})
    mallory, victim = await raw(up, "mallory", namespace), await raw(up, "victim", namespace)
    worker = up.workers[0]._namespaces[namespace].nc
    try:
        for subject in SUBJECTS:
            for reply in (b"", b"_INBOX.mallory "):
                await write(mallory, b"PUB %s %s2\r\n{}\r\n" % (subject, reply))
        for block in HEADERS:
            for reply in (b"", b"_INBOX.mallory "):
                sizes = b"%d %d" % (len(block), len(block) + 2)
                await write(mallory, b"HPUB mas.call.mallory.send %s%s\r\n%s{}\r\n" % (reply, sizes, block))
        fields = {headers.MSG_ID: "still-here", headers.TARGET: "mallory", headers.TYPE: "work"}
        answer = await victim.request(subjects.call("victim", "send"), b"{}", timeout=5, headers=fields)
        assert Verdict.decode(answer.data).ok
        assert worker.stats["reconnects"] == 0
        registry = up.workers[0]._namespaces[namespace].service._registry
        assert set(registry._fingerprints) <= {"mallory", "victim"}
    finally:
        await mallory.close()
        await victim.close()
