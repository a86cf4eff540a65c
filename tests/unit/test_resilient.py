"""What nats-py does not survive, or not in time, on a real server."""

from __future__ import annotations

import asyncio
import time

import nats.errors
import pytest

from broker_policy.embedded.nats_server import NatsServer
from mas_nats.resilient import ResilientClient


async def test_a_request_ends_with_the_connection_that_carried_it(
    nc: ResilientClient, nats_server: NatsServer
):
    """Its answer cannot come any more: who may repeat it need not wait for the timeout."""
    asked = await nc.subscribe("silence")
    waiting = asyncio.create_task(nc.request("silence", timeout=30))
    await asked.next_msg(timeout=2)
    begun = time.monotonic()
    nats_server.kill()
    with pytest.raises(nats.errors.Error):
        await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - begun < 2


async def test_a_flush_ends_with_the_connection_that_carried_it(nc: ResilientClient, nats_server: NatsServer):
    nats_server.pause()
    try:
        waiting = asyncio.create_task(nc.flush(30))
        await asyncio.sleep(0)
    finally:
        nats_server.kill()
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await asyncio.wait_for(waiting, 5)


async def test_what_was_given_up_unsent_is_not_sent_over_the_next_connection(
    nc: ResilientClient, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
):
    heard: list[bytes] = []

    async def hear(message) -> None:
        heard.append(message.data)
        if message.reply:
            await message.respond(b"heard")

    await nc.subscribe("said", cb=hear)
    left = await nc.subscribe("said", cb=hear)
    await nc.request("said", b"", timeout=5)
    nc._transport.drain = (takes := asyncio.Event()).wait  # no more
    monkeypatch.setattr(type(nc._transport), "idle", False)
    await nc.publish("unheard", b"")
    while nc.pending_data_size:
        await asyncio.sleep(0)
    asking = asyncio.create_task(nc.request("said", b"given up", timeout=10))
    async with asyncio.timeout(5):
        while not nc.pending_data_size:
            await asyncio.sleep(0)
    await left.unsubscribe()
    await nc._process_op_err(OSError("gone"))
    takes.set()
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await asking
    async with asyncio.timeout(10):
        while not nc.is_connected:
            await asyncio.sleep(0.01)
    await nc.publish("said", b"after")
    await nc.flush()
    async with asyncio.timeout(10):
        while b"after" not in heard:
            await asyncio.sleep(0.01)
    assert heard == [b"", b"", b"after"]


async def test_what_waits_is_written_at_once(nc: ResilientClient):
    """Each write is a record of TLS by itself."""
    heard = await nc.subscribe("said")
    await nc.flush()
    writer, written = nc._transport._io_writer, []
    write = writer.write

    def counted(data: bytes) -> None:
        written.append(data)
        write(data)

    writer.write = counted
    for number in range(50):
        await nc.publish("said", str(number).encode())
    assert [int((await heard.next_msg(timeout=5)).data) for _ in range(50)] == list(range(50))
    assert len(written) < 5, [len(each) for each in written]
    assert b"".join(written).count(b"PUB said") == 50


async def test_a_request_made_meanwhile_is_answered_afterwards(nc: ResilientClient, nats_server: NatsServer):
    async def answer(message) -> None:
        await message.respond(b"here")

    await nc.subscribe("echo", cb=answer)
    nats_server.kill()
    async with asyncio.timeout(5):
        while nc.is_connected:
            await asyncio.sleep(0.01)
    asking = asyncio.create_task(nc.request("echo", timeout=10))
    await nats_server.start()
    assert (await asking).data == b"here"


async def test_a_connection_whose_writer_has_lost_its_transport_can_be_closed(nc: ResilientClient):
    """As asyncio leaves it where the server goes away while TLS begins."""
    transport = nc._transport
    writer = transport._io_writer
    lost, writer._transport = writer.transport, None
    try:
        nc.batch_reads(1)
        await nc.close()
        assert nc.is_closed
    finally:
        writer._transport = lost
        lost.abort()
