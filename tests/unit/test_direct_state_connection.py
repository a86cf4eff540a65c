"""The connection over which a worker hears of direct state: what comes after a change is not read at once."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats.errors
import pytest

from broker_policy.direct_state import hearing as module
from broker_policy.direct_state.hearing import Hearing
from broker_policy.embedded.nats_server import NatsServer
from mas_nats.resilient import ResilientClient

Connect = Callable[[], Awaitable[ResilientClient]]


class Ear:
    """What was heard, in order."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._more = asyncio.Event()

    async def hear(self, message: Any) -> None:
        self.heard.append(message.data)
        self._more.set()

    async def until(self, what: bytes, seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while what not in self.heard:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def hearing(connect: Connect) -> AsyncIterator[Hearing]:
    ears = Hearing(connect)
    yield ears
    await ears.close()


@pytest.fixture
def long_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _keeps_back():
        pytest.skip("this system wakes up whoever reads for each byte: it has no SO_RCVLOWAT")
    monkeypatch.setattr(module, "_REST", 60.0)


def _keeps_back() -> bool:
    if not hasattr(socket, "SO_RCVLOWAT"):
        return False
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        other, _ = server.accept()
        with other:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
            other.send(b"few")
            early = select.select([one], [], [], 0.5)[0]
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return not early and bool(select.select([one], [], [], 5)[0])


async def told(nc: ResilientClient, *what: bytes) -> None:
    """Say it to everybody, and wait until an ordinary connection has heard it."""
    ear = Ear()
    subscription = await nc.subscribe("changed.d", cb=ear.hear)
    for each in what:
        await nc.publish("changed.d", each)
    await ear.until(what[-1])
    await subscription.unsubscribe()


async def resting(nc: ResilientClient, hearing: Hearing) -> Ear:
    """What has heard ``1``, so that the connection rests."""
    ear = Ear()
    await hearing.subscribe("changed.d", ear.hear)
    await told(nc, b"1")
    await ear.until(b"1")
    return ear


@pytest.mark.usefixtures("long_rest")
async def test_what_comes_after_a_change_waits(nc: ResilientClient, hearing: Hearing) -> None:
    ear = await resting(nc, hearing)
    await told(nc, b"2", b"3", b"4")
    assert ear.heard == [b"1"]
    await hearing.catch_up()
    await ear.until(b"4")
    assert ear.heard == [b"1", b"2", b"3", b"4"]


@pytest.mark.usefixtures("long_rest")
async def test_all_that_was_sent_is_heard_by_then(nc: ResilientClient, hearing: Hearing) -> None:
    """Whoever asks the bucket for the newest revision compares it with what was heard."""
    ear = Ear()
    await hearing.subscribe("changed.d", ear.hear)
    for turn in range(20):
        await told(nc, *(f"{turn}.{number}".encode() for number in range(turn + 1)))
        await hearing.catch_up()
        assert ear.heard[-1] == f"{turn}.{turn}".encode()


@pytest.mark.usefixtures("long_rest")
async def test_much_does_not_wait(nc: ResilientClient, hearing: Hearing) -> None:
    """The kernel's memory, and the server's patience with a slow reader, have an end."""
    ear = await resting(nc, hearing)
    await told(nc, *(f"{number:04}".encode() + b"x" * 4000 for number in range(100)))
    async with asyncio.timeout(5):
        while len(ear.heard) < 60:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("long_rest")
async def test_the_end_of_the_connection_does_not_wait(
    nc: ResilientClient, hearing: Hearing, nats_server: NatsServer
) -> None:
    ear = await resting(nc, hearing)
    nats_server.kill()
    await nats_server.start()
    async with asyncio.timeout(10):
        while not hearing.reconnects or not nc.is_connected:
            await asyncio.sleep(0.01)
    await hearing.catch_up()
    await told(nc, b"2")
    await ear.until(b"2")


async def test_the_rest_ends_by_itself(nc: ResilientClient, hearing: Hearing) -> None:
    ear = Ear()
    await hearing.subscribe("changed.d", ear.hear)
    for number in range(5):
        await told(nc, str(number).encode())
        await ear.until(str(number).encode(), 2)


async def test_the_connection_is_opened_when_there_is_something_to_hear(connect: Connect) -> None:
    opened = []

    async def opening() -> ResilientClient:
        opened.append(await connect())
        return opened[-1]

    ears = Hearing(opening)
    await ears.catch_up()
    assert (opened, ears.reconnects) == ([], 0)
    await ears.subscribe("changed.d", Ear().hear)
    await ears.subscribe("changed.e", Ear().hear)
    assert len(opened) == 1
    await ears.close()
    assert opened[0].is_closed


async def test_a_connection_that_is_lost_is_not_waited_for(
    nc: ResilientClient, hearing: Hearing, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost with it, and recording waits meanwhile."""
    monkeypatch.setattr(module, "_PATIENCE", 60)
    await hearing.subscribe("changed.d", Ear().hear)
    nats_server.pause()
    try:
        catching_up = asyncio.create_task(hearing.catch_up())
        await asyncio.sleep(0)
    finally:
        nats_server.kill()
    assert not await asyncio.wait_for(catching_up, 5)
    assert hearing.away
    assert not await asyncio.wait_for(hearing.catch_up(), 1)


async def test_a_server_that_says_nothing_is_not_waited_for_long(
    nc: ResilientClient, hearing: Hearing, nats_server: NatsServer
) -> None:
    ear = Ear()
    await hearing.subscribe("changed.d", ear.hear)
    nats_server.pause()
    try:
        assert not await asyncio.wait_for(hearing.catch_up(), 5)
    finally:
        nats_server.resume()
    async with asyncio.timeout(5):
        while not await hearing.catch_up():
            await asyncio.sleep(0.05)
    assert (ear.heard, hearing.reconnects) == ([], 0)
    await told(nc, b"1")
    await ear.until(b"1", 2)  # the late answer did not end its reading


async def test_it_can_be_opened_again(nc: ResilientClient, hearing: Hearing) -> None:
    await hearing.subscribe("changed.d", Ear().hear)
    await hearing.close()
    await hearing.close()
    await resting(nc, hearing)


async def test_what_could_not_be_confirmed_is_not_subscribed_to(
    nc: ResilientClient, hearing: Hearing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try would be a second one, and each change heard twice."""
    first, second = Ear(), Ear()

    async def lost() -> bool:
        return False

    with monkeypatch.context() as broken:
        broken.setattr(hearing, "catch_up", lost)
        with pytest.raises(nats.errors.ConnectionReconnectingError):
            await hearing.subscribe("changed.d", first.hear)
    await hearing.subscribe("changed.d", second.hear)
    await told(nc, b"1")
    await second.until(b"1")
    assert first.heard == []
