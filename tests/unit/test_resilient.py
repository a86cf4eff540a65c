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
        await nc.close()
        assert nc.is_closed
    finally:
        writer._transport = lost
        lost.abort()
