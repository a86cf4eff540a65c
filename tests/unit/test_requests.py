"""Requests of the client that both sides use, and what is received as it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from sdk_worker import endpoint

from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.pki import CertificateAuthority
from mas_nats.asking import Published
from mas_nats.questions import PublishDenied
from mas_nats.resilient import ResilientClient
from mas_nats.transport import Incoming

Connect = Callable[[], Awaitable[ResilientClient]]


async def echo(nc: ResilientClient, subject: str) -> list[bytes]:
    """Answer with what is said; in which order it came."""
    heard: list[bytes] = []

    async def answer(message: Any) -> None:
        heard.append(message.data)
        if message.reply:
            await message.respond(message.data[:100])

    await nc.subscribe(subject, cb=answer, pending_bytes_limit=-1)
    await nc.flush()
    return heard


def writes_of(nc: ResilientClient) -> list[bytes]:
    """What is written to its connection from here on, by writes."""
    written, write = list[bytes](), nc._transport.write

    def counted(data: bytes) -> None:
        written.append(data)
        write(data)

    nc._transport.write = counted
    return written


async def unanswered(nc: ResilientClient) -> asyncio.Task[Any]:
    """A request that has arrived, and that nobody answers."""
    asked = await nc.subscribe("nobody.answers")
    waiting = asyncio.create_task(nc.request("nobody.answers", b"", timeout=60))
    await asked.next_msg(timeout=5)
    return waiting


async def test_it_stands_behind_what_was_published_before(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    for number in range(0, 300, 3):
        await nc.publish("said", b"%d" % number)
        await asyncio.gather(
            nc.request("said", b"%d" % (number + 1), timeout=5),
            nc.request("said", b"%d" % (number + 2), timeout=5),
        )
    assert heard == [b"%d" % number for number in range(300)]


async def test_many_of_one_moment_are_written_together(connect: Connect) -> None:
    """Each write is a record of TLS, and wakes the server."""
    nc, other = await connect(), await connect()
    await echo(other, "said")
    await nc.request("said", b"first", timeout=5)
    writer, written = nc._transport._io_writer, list[bytes]()
    write = writer.write

    def counted(data: bytes) -> None:
        written.append(data)
        write(data)

    writer.write = counted
    bodies = [b"%d" % number for number in range(100)]
    answers = await asyncio.gather(*(nc.request("said", body, timeout=5) for body in bodies))
    assert [answer.data for answer in answers] == bodies
    assert len(written) < 6, [len(each) for each in written]


async def test_each_gets_its_own_answer_and_nothing_is_left_of_them(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    await echo(other, "said")
    bodies = [b"%d" % number for number in range(200)]
    answers = await asyncio.gather(*(nc.request("said", body, timeout=5) for body in bodies))
    assert [answer.data for answer in answers] == bodies
    assert not nc._questions._asked


async def test_an_answer_that_comes_too_late_is_nobodys(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    asked = await other.subscribe("said")
    await other.flush()
    with pytest.raises(nats.errors.TimeoutError):
        await nc.request("said", b"first", timeout=0.1)
    late = await asked.next_msg(timeout=5)
    waiting = asyncio.create_task(nc.request("said", b"second", timeout=5))
    soon = await asked.next_msg(timeout=5)
    await late.respond(b"first")
    await soon.respond(b"second")
    assert (await waiting).data == b"second"
    assert not nc._questions._asked


async def test_one_that_is_cancelled_is_forgotten(connect: Connect) -> None:
    nc = await connect()
    waiting = await unanswered(nc)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not nc._questions._asked


async def test_it_ends_when_the_connection_is_closed(connect: Connect) -> None:
    nc = await connect()
    waiting = await unanswered(nc)
    await nc.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await nc.request("said", b"", timeout=60)


async def test_closing_where_the_server_is_silent_ends_it_at_once(
    nc: ResilientClient, nats_server: NatsServer
) -> None:
    waiting = await unanswered(nc)
    nats_server.pause()
    try:
        closing = asyncio.create_task(nc.close())
        with pytest.raises(nats.errors.ConnectionClosedError):
            await asyncio.wait_for(waiting, 2)
    finally:
        nats_server.resume()
    await closing


async def test_it_ends_where_another_connection_is_wanted(nc: ResilientClient, connect: Connect) -> None:
    """What was published before has been sent."""
    heard, other = await echo(nc, "said"), await connect()
    before = await other.subscribe("said")
    await other.flush()
    waiting = await unanswered(nc)
    await nc.publish("said", b"before")
    await nc.force_reconnect()
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await asyncio.wait_for(waiting, 1)
    assert (await before.next_msg(timeout=5)).data == b"before"
    await nc.publish("said", b"meanwhile")
    async with asyncio.timeout(10):
        while not (nc.is_connected and nc.stats["reconnects"]):
            await asyncio.sleep(0.01)
    assert (await nc.request("said", b"after", timeout=5)).data == b"after"
    assert set(heard) >= {b"meanwhile", b"after"}


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "behind others"])
async def test_what_is_published_first_and_a_request_behind_it_are_one_write(
    waits: bool, connect: Connect
) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    await nc.request("said", b"first", timeout=5)
    written = writes_of(nc)
    bodies = [b"0"] if waits else []
    if waits:
        await nc.publish("said", b"0")
    before = dict(nc.stats)
    first = Published("said", b"1", {"X-First": "1"})
    answer = await nc.request_behind(first, "said", b"22", timeout=5, headers={"X-Behind": "2"})
    assert (answer.data, heard) == (b"22", [b"first", *bodies, b"1", b"22"])
    assert len(written) == 1
    assert (nc.stats["out_msgs"] - before["out_msgs"], nc.stats["out_bytes"] - before["out_bytes"]) == (2, 3)


async def test_what_is_published_first_arrives_also_where_nobody_answers(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    with pytest.raises(nats.errors.NoRespondersError):
        await nc.request_behind(Published("said", b"1", {}), "unheard", b"", timeout=5, headers={})
    await other.flush()
    assert heard == [b"1"]


async def test_what_is_too_large_to_be_published_first_is_refused(connect: Connect) -> None:
    nc = await connect()
    heard = await echo(nc, "said")
    first = Published("said", bytes(nc.max_payload + 1), {})
    with pytest.raises(nats.errors.MaxPayloadError):
        await nc.request_behind(first, "said", b"2", timeout=5, headers={})
    await nc.flush()
    assert heard == []


async def test_all_that_is_published_together_is_one_write_and_the_request_after_it_comes_last(
    connect: Connect,
) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    await nc.request("said", b"first", timeout=5)
    written = writes_of(nc)
    before = dict(nc.stats)
    some = [Published("said", b"%d" % number, {"X-Number": str(number)}) for number in range(100)]
    await nc.publish_all(some)
    await nc.request("said", b"last", timeout=5)
    assert heard == [b"first", *(each.payload for each in some), b"last"]
    assert len(written) == 1
    assert nc.stats["out_msgs"] - before["out_msgs"] == 101
    assert nc.stats["out_bytes"] - before["out_bytes"] == 10 + 2 * 90 + 4


async def test_all_arrive_with_their_headers(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    subscription = await other.subscribe("said.*")
    await other.flush()
    await nc.publish_all([Published("said.a", b"1", {"X-A": "ä", "X-B": ""}), Published("said.b", b"", {})])
    one, two = [await subscription.next_msg(timeout=5) for _ in range(2)]
    assert (one.subject, one.data, one.headers) == ("said.a", b"1", {"X-A": "ä", "X-B": ""})
    assert (two.subject, two.data, two.headers) == ("said.b", b"", None)


async def test_of_all_together_a_header_that_is_none_is_left_to_nats_py(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    with pytest.raises(nats.errors.BadHeaderError):
        await nc.publish_all([Published("said", b"1", {"X-A": "1"}), Published("said", b"2", {"X A": "2"})])
    with pytest.raises(nats.errors.MaxPayloadError):
        await nc.publish_all([Published("said", bytes(nc.max_payload + 1), {})])
    await nc.flush()
    await other.flush()
    assert heard == [b"1"]


async def test_all_that_is_published_without_a_connection_arrives_with_the_next(connect: Connect) -> None:
    nc, other = await connect(), await connect()
    heard = await echo(other, "said")
    await nc.force_reconnect()
    await nc.publish_all([Published("said", b"%d" % number, {"X-A": "1"}) for number in range(3)])
    assert heard == []
    async with asyncio.timeout(10):
        while len(heard) < 3:
            await asyncio.sleep(0.01)
    assert heard == [b"0", b"1", b"2"]
    await nc.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await nc.publish_all([Published("said", b"", {})])


async def test_where_nobody_may_publish_it_fails_at_once(
    ca: CertificateAuthority, start_nats: Callable[..., Awaitable[NatsServer]], tmp_path: Path
) -> None:
    denying = """
        authorization {
            default_permissions { publish { deny: "said.Secretly" } }
            users: [ { user: u, password: p } ]
        }
        no_auth_user: u
    """
    where = endpoint(ca, tmp_path / "c", await start_nats(extra=denying), "a")
    nc, refused = ResilientClient(), list[Exception]()

    async def on_error(error: Exception) -> None:
        refused.append(error)

    await nc.connect_within(5, error_cb=on_error, servers=where.servers, tls=where.context())
    try:
        asked = await nc.subscribe("said.openly")
        openly = asyncio.create_task(nc.request("said.openly", timeout=60))
        message = await asked.next_msg(timeout=5)
        with pytest.raises(PublishDenied, match=r"said\.Secretly"):
            await asyncio.wait_for(nc.request("said.Secretly", timeout=60), 5)
        await message.respond(b"yes")
        assert (await openly).data == b"yes"
        assert len(refused) == 1
    finally:
        await nc.close()


async def test_what_a_server_does_not_take_waits_where_it_is_limited(
    connect: Connect, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past nats-py's buffer, which is limited, goes only what the connection takes."""
    nc, at_once = await connect(), list[bool]()
    heard = await echo(await connect(), "said")
    await nc.request("said", b"first", timeout=5)
    write = nc._write_at_once

    def counted(*message: Any) -> bool:
        at_once.append(write(*message))
        return at_once[-1]

    monkeypatch.setattr(nc, "_write_at_once", counted)
    monkeypatch.setattr("mas_nats.asking._FEW", 1000)
    bodies = [b"%d" % number + bytes(500_000) for number in range(40)]
    nats_server.pause()
    try:
        asking = [asyncio.create_task(nc.request("said", body, timeout=30)) for body in bodies]
        async with asyncio.timeout(5):
            while len(at_once) < len(asking):
                await asyncio.sleep(0)
    finally:
        nats_server.resume()
    assert sum(at_once) < 20  # the kernel's buffers
    assert [answer.data for answer in await asyncio.gather(*asking)] == [body[:100] for body in bodies]
    assert sorted(heard) == sorted([b"first", *bodies])
    assert await nc.request("said", b"last", timeout=5)
    assert at_once[-1]


async def test_one_that_cannot_be_sent_ends_in_time(
    nc: ResilientClient, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nc, "_max_pending_size", 1000)
    monkeypatch.setattr(nc, "_flush_timeout", 60)
    await nc.subscribe("said")
    await nc.flush()
    with pytest.raises(nats.errors.NoRespondersError):
        await nc.request("unheard", timeout=5)
    nats_server.pause()
    try:
        nc._transport.write(b"PUB unheard 1000000\r\n" + bytes(1_000_000) + b"\r\n")
        begun = time.monotonic()
        with pytest.raises(nats.errors.TimeoutError):
            await asyncio.wait_for(nc.request("said", bytes(2000), timeout=0.3), 10)
        assert 0.2 < time.monotonic() - begun < 3
    finally:
        nats_server.resume()


async def test_what_goes_wrong_with_a_message_does_not_end_the_reading(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> None:
    where = endpoint(ca, tmp_path / "c", nats_server, "a")
    nc, wrong, heard = ResilientClient(), list[Exception](), list[bytes]()

    async def on_error(error: Exception) -> None:
        wrong.append(error)
        raise error

    async def receive(message: Any) -> None:
        heard.append(message.data)
        if message.data == b"bad":
            raise ZeroDivisionError
        if message.data == b"cancelled":
            raise asyncio.CancelledError

    await nc.connect_within(5, error_cb=on_error, servers=where.servers, tls=where.context())
    try:
        subscription = await nc.subscribe_directly("said", receive)
        bodies = [b"good", b"bad", b"good", b"cancelled", b"good"]
        for body in bodies:
            await nc.publish("said", body)
        await nc.flush()
        assert heard == bodies
        assert [type(each) for each in wrong] == [ZeroDivisionError, nats.errors.Error]
        await subscription.unsubscribe()
        await nc.publish("said", b"unheard")
        await nc.flush()
        assert len(heard) == len(bodies)
        assert list(nc._direct) == []
    finally:
        await nc.close()


async def test_what_is_received_directly_comes_over_the_next_connection_too(
    nc: ResilientClient, nats_server: NatsServer
) -> None:
    heard: list[bytes] = []
    again = asyncio.Event()

    async def receive(message: Any) -> None:
        heard.append(message.data)
        again.set()

    await nc.subscribe_directly("said", receive)
    await echo(nc, "asked")
    assert (await nc.request("asked", b"1", timeout=5)).data == b"1"
    nats_server.kill()
    await nats_server.start()
    async with asyncio.timeout(10):
        while not (nc.is_connected and nc.stats["reconnects"]):
            await asyncio.sleep(0.01)
    await nc.publish("said", b"after")
    await asyncio.wait_for(again.wait(), 5)
    assert heard == [b"after"]
    assert (await nc.request("asked", b"2", timeout=5)).data == b"2"


async def test_nothing_is_received_after_the_end(nc: ResilientClient) -> None:
    heard: list[bytes] = []
    closing: list[asyncio.Task[None]] = []

    async def receive(message: Any) -> None:
        heard.append(message.data)
        closing.append(asyncio.create_task(nc.close()))
        await asyncio.sleep(0)

    await nc.subscribe_directly("said", receive)
    for number in range(3):
        await nc.publish("said", b"%d" % number)
    async with asyncio.timeout(5):
        while not nc.is_closed:
            await asyncio.sleep(0.01)
    await asyncio.gather(*closing)
    assert heard == [b"0"]
    assert list(nc._direct) == []


async def test_draining_brings_what_has_arrived(nc: ResilientClient) -> None:
    heard: list[bytes] = []

    async def receive(message: Any) -> None:
        heard.append(message.data)

    subscription = await nc.subscribe_directly("said", receive)
    for number in range(100):
        await nc.publish("said", b"%d" % number)
    await subscription.drain()
    assert heard == [b"%d" % number for number in range(100)]
    assert list(nc._direct) == []


async def test_what_is_read_together_is_received_in_order(nc: ResilientClient, connect: Connect) -> None:
    """Its receiver runs where it was subscribed, and after what was read with it was taken apart."""
    heard, where = list[bytes](), ContextVar[str]("where")
    where.set("here")

    def receive(message: Incoming) -> None:
        assert where.get() == "here"
        heard.append(message.data)
        assert message == ("said", "back", {"Mas-Type": "note"}, message.data)

    subscription = await nc.subscribe_together("said", receive)
    await nc.flush()
    where.set("elsewhere")
    other = await connect()
    for number in range(1000):
        await other.publish("said", b"%d" % number, reply="back", headers={"Mas-Type": "note"})
    await other.flush()
    await subscription.drain()
    assert heard == [b"%d" % number for number in range(1000)]
    assert list(nc._direct) == []


async def test_what_goes_wrong_with_one_read_together_keeps_no_other_one(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> None:
    where = endpoint(ca, tmp_path / "c", nats_server, "a")
    nc, wrong, heard = ResilientClient(), list[Exception](), list[bytes]()

    async def on_error(error: Exception) -> None:
        wrong.append(error)
        raise error

    def receive(message: Incoming) -> None:
        heard.append(message.data)
        if message.data == b"bad":
            raise ZeroDivisionError

    await nc.connect_within(5, error_cb=on_error, servers=where.servers, tls=where.context())
    try:
        await nc.subscribe_together("said", receive)
        for body in (b"good", b"bad", b"good"):
            await nc.publish("said", body)
        await nc.flush()
        assert heard == [b"good", b"bad", b"good"]
        await asyncio.sleep(0)
        assert [type(each) for each in wrong] == [ZeroDivisionError]
    finally:
        await nc.close()


@pytest.mark.parametrize("end", ["unsubscribed", "closed"])
async def test_what_is_read_together_with_the_end_is_dropped(nc: ResilientClient, end: str) -> None:
    heard: list[bytes] = []
    subscription = await nc.subscribe_together("said", lambda message: heard.append(message.data))
    number = max(nc._direct)
    await nc._process_msg(number, b"said", b"", b"1", b"")
    await asyncio.sleep(0)
    await nc._process_msg(number, b"said", b"", b"2", b"")
    await (subscription.unsubscribe() if end == "unsubscribed" else nc.close())
    await asyncio.sleep(0)
    assert heard == [b"1"]
    assert list(nc._direct) == []


async def test_a_subject_that_is_no_text_is_nobodys(nc: ResilientClient) -> None:
    heard: list[str] = []
    await nc.subscribe_together("said.*", lambda message: heard.append(message.subject))
    number = max(nc._direct)
    for subject in (b"said.\xff", b"said.1"):
        await nc._process_msg(number, subject, b"", b"", b"")
    await asyncio.sleep(0)
    assert heard == ["said.1"]


async def test_a_flush_without_a_connection_says_so_at_once(
    nc: ResilientClient, nats_server: NatsServer
) -> None:
    nats_server.kill()
    async with asyncio.timeout(5):
        while nc.is_connected:
            await asyncio.sleep(0)
    with pytest.raises(nats.errors.ConnectionReconnectingError):
        await asyncio.wait_for(nc.flush(60), 1)


async def test_nor_does_one_that_asyncio_has_given_up_end_in_anything_else(nc: ResilientClient) -> None:
    writer = nc._transport._io_writer
    await nc.flush()
    kept, writer._transport = writer.transport, None  # its TLS transport lacks a part that it needs, then
    try:
        with pytest.raises(nats.errors.ConnectionReconnectingError):
            await nc.flush(2)
        assert not nc._transport.idle
    finally:
        writer._transport = kept


# -- another connection ------------------------------------------------------------------------------------
@pytest.mark.parametrize("again", ["wanted", "lost"])
async def test_a_reconnect_that_begins_anew_replaces_the_one_before(nc: ResilientClient, again: str) -> None:
    """Two at once would end each other's connection, and nobody would be told."""
    process = nc._process_pong
    nc._process_pong = asyncio.Event().wait  # type: ignore[method-assign] # the flush that ends a reconnect
    await nc._process_op_err(OSError("gone"))
    async with asyncio.timeout(10):
        while not (nc.is_connected and nc._pongs):
            await asyncio.sleep(0.01)
    first = nc._reconnection_task
    nc._process_pong = process  # type: ignore[method-assign]
    await (nc.force_reconnect() if again == "wanted" else nc._process_op_err(OSError("gone")))
    assert nc._reconnection_task is not first
    async with asyncio.timeout(10):
        while not (first.done() and nc._reconnection_task.done()):
            await asyncio.sleep(0.01)
    await echo(nc, "said")
    assert (await nc.request("said", b"after", timeout=5)).data == b"after"
    assert nc.stats["reconnects"] == 2


async def test_a_server_that_is_silent_is_left_within_seconds(
    ca: CertificateAuthority, nats_server: NatsServer, tmp_path: Path
) -> None:
    where = endpoint(ca, tmp_path / "c", nats_server, "a")
    nc, left = ResilientClient(), asyncio.Event()

    async def ignore(_: Exception) -> None: ...

    async def gone() -> None:
        left.set()

    options = {"servers": where.servers, "tls": where.context(), "disconnected_cb": gone}
    await nc.connect_within(5, error_cb=ignore, **options)
    nats_server.pause()
    try:
        await nc.force_reconnect()
        await asyncio.wait_for(left.wait(), 5)
    finally:
        nats_server.resume()
        await nc.close()


async def test_what_a_silent_server_did_not_take_goes_over_the_next_connection_but_no_request(
    connect: Connect, nats_server: NatsServer
) -> None:
    nc = await connect()
    heard = await echo(await connect(), "said")
    await nc.request("said", b"first", timeout=5)
    nats_server.pause()
    try:
        flood = asyncio.create_task(_flood(nc))
        async with asyncio.timeout(10):
            while nc.pending_data_size < 1_000_000:
                await asyncio.sleep(0)
        asking = asyncio.create_task(nc.request("said", b"asked", timeout=60))
        async with asyncio.timeout(5):
            while not any(b"asked" in each for each in nc._pending):
                await asyncio.sleep(0)
        waits = sum(b"flood" in each[-100:] for each in nc._pending)
        assert waits
        await nc.force_reconnect()
        with pytest.raises(nats.errors.ConnectionReconnectingError):
            await asyncio.wait_for(asking, 1)
    finally:
        nats_server.resume()
    async with asyncio.timeout(20):
        while not (nc.is_connected and nc.stats["reconnects"]):
            await asyncio.sleep(0.01)
        written = await flood
        await nc.flush()
        await nc.request("said", b"last", timeout=5)
    assert b"asked" not in heard
    assert heard[-1] == b"last"
    numbers = [int(each[-10:].lstrip(b"flood")) for each in heard if each[-10:].startswith(b"flood")]
    assert numbers == sorted(numbers)
    assert numbers[-waits:] == list(range(written - waits, written))


async def _flood(nc: ResilientClient) -> int:
    """Publish until somebody has to wait; how many."""
    for number in range(1000):
        await nc.publish("said", bytes(200_000) + b"flood%05d" % number)
        await asyncio.sleep(0.002)  # what the connection takes leaves the buffer
        if nc.pending_data_size >= 1_000_000:
            return number + 1
    raise AssertionError("the server takes everything")
