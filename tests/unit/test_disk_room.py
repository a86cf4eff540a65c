"""Room on the storage below the logs: what is looked at, when it counts as full, and why it is looked at."""

from __future__ import annotations

import secrets
import ssl
from pathlib import Path

import nats.errors
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from broker_policy.commit.disk_room import RESERVE, DiskRoom, Space, jetstream_store, local_disk
from broker_policy.commit.log_room import LogRoom
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.tenants.streams import tenant_streams
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import Identity, Role
from tests.conftest import StartNats

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "free", "low"),
    [
        (100 * GIB, RESERVE, False),
        (100 * GIB, RESERVE - 1, True),
        (GIB, GIB // 10, False),
        (GIB, GIB // 10 - 1, True),
        (100 * GIB, -1, True),
    ],
)
def test_a_reserve_is_kept(size: int, free: int, *, low: bool) -> None:
    assert Space("disk", size, free).low is low


async def test_full_while_any_storage_is_low() -> None:
    free = {"a": GIB, "b": GIB}

    async def look() -> list[Space]:
        return [Space(name, 10 * GIB, left) for name, left in free.items()]

    room = DiskRoom(look)
    assert not room.full
    free["b"] = 0
    await room.look()
    assert room.full
    free["b"] = GIB
    await room.look()
    assert not room.full


async def test_what_cannot_be_seen_is_as_it_was() -> None:
    answers = [[Space("disk", 10 * GIB, 0)]]

    async def look() -> list[Space]:
        return answers.pop()  # an IndexError from the second look on

    room = DiskRoom(look)
    await room.look()
    await room.look()
    assert room.full


async def test_the_disk_of_a_folder(tmp_path: Path) -> None:
    (space,) = await local_disk(tmp_path)()
    assert 0 < space.free <= space.size


async def test_what_nats_servers_may_store() -> None:
    async def summaries() -> list[dict[str, object]]:
        return [{"storage": 90, "config": {"max_storage": 100}}, {"storage": 5, "config": {}}, {}]

    assert await jetstream_store(summaries)() == [
        Space("max_file_store of a nats-server", 100, 10),
    ]


async def test_a_log_on_a_low_disk_is_full(nc: ResilientClient) -> None:
    async def look() -> list[Space]:
        return [Space("disk", 10 * GIB, 0)]

    disk = DiskRoom(look)
    room = LogRoom(nc, lambda: GIB, disk)
    assert not room.full
    await disk.look()
    assert room.full


async def test_a_full_store_tears_a_batch(
    start_nats: StartNats, ca: CertificateAuthority, tmp_path: Path
) -> None:
    """The control: why the storage is looked at before it is full. Once this fails, the server was mended."""
    store = tmp_path / "store"
    server = await start_nats(extra=f'jetstream {{\n store_dir: "{store}"\n max_file_store: 20MB\n}}')
    paths = ca.issue(Identity("mas", "default", Role.AGENT, "a"), tmp_path / "client")
    context = ssl.create_default_context(cafile=str(paths.ca))
    context.load_cert_chain(paths.cert, paths.key)
    client = ResilientClient()
    await client.connect(server.url, tls=context, tls_hostname="localhost", allow_reconnect=False)
    try:
        js = client.jetstream()
        inbox = next(each for each in tenant_streams(Limits()) if each.name == subjects.INBOX_STREAM)
        await js.add_stream(inbox)
        config = ConsumerConfig(
            durable_name="b", filter_subject=subjects.inbox("b"), ack_policy=AckPolicy.EXPLICIT
        )
        await js.add_consumer(subjects.INBOX_STREAM, config)
        with pytest.raises(nats.errors.TimeoutError):
            await _batches(client, 64)
        stored = (await js.stream_info(subjects.INBOX_STREAM)).state.messages
        assert stored % 64, "the batch that found no room is not there in part"
    finally:
        await client.close()


async def _batches(client: ResilientClient, count: int) -> None:
    for _ in range(100):
        await _batch(client, count)


async def _batch(client: ResilientClient, count: int) -> None:
    fields = {headers.BATCH_ID: secrets.token_hex(8)}
    for number in range(1, count):
        await client.publish(
            subjects.inbox("b"), b"x" * 10_000, headers={**fields, headers.BATCH_SEQUENCE: str(number)}
        )
    fields |= {headers.BATCH_SEQUENCE: str(count), headers.BATCH_COMMIT: "1"}
    await client.request(subjects.inbox("b"), b"x" * 10_000, headers=fields, timeout=2)
