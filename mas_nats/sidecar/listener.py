"""The HTTP side of the application: a small HTTP/1.1 server on loopback, on the h11 state machine.

Every wait has a limit, also for a header or a body that comes byte by byte, and a client that leaves cancels
what is done for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import h11

from mas_nats.sidecar.application import Limits
from mas_nats.sidecar.http_message import HttpResponse
from mas_nats.sidecar.refusal import INVALID_REQUEST, TOO_LARGE, Refusal, response

logger = logging.getLogger("mas_nats")

_READ = 64 << 10
_IDLE = 75.0
"""Seconds that a connection may wait for its next request."""
_AHEAD = 64 << 10
"""Bytes of a next request that are read while one is answered; then the client is not read from."""
_LINGER = 2.0
_LINGER_BYTES = 8 << 20
"""Seconds, and bytes, that are read of what a refused client still sends."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came, nothing judged. ``headers`` in order, names in lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


class Answer:
    """Where an answer is written: whole, or head, parts and end."""

    def __init__(self, connection: _Connection, method: str = "") -> None:
        self._connection = connection
        self._method = method
        self.begun = False

    async def whole(self, answer: HttpResponse) -> None:
        """Send a whole answer."""
        size = {} if answer.status in {204, 304} else {"content-length": str(len(answer.body))}
        events: list[h11.Event] = [_head(answer.status, {**answer.headers, **size})]
        if answer.body and size and self._method != "HEAD":
            events.append(h11.Data(data=answer.body))
        self.begun = True
        await self._connection.send(*events, h11.EndOfMessage())  # in one write: the client wakes once

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers. Without a length the body is sent in chunks."""
        self.begun = True
        await self._connection.send(_head(status, headers))

    async def write(self, data: bytes) -> None:
        """Send a part of the body; waits while the client does not take it."""
        await self._connection.send(h11.Data(data=data))

    async def end(self) -> None:
        """The answer is complete."""
        await self._connection.send(h11.EndOfMessage())


Handle = Callable[[Received, Answer], Awaitable[None]]


class Gone(Exception):
    """The client has left, or takes nothing any more."""


class Listener:
    """Listens on one address and has ``handle`` answer."""

    def __init__(self, address: str, limits: Limits, handle: Handle) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._limits = limits
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._connected, self._host, self._port)

    @property
    def address(self) -> str:
        """Where it listens: with the port that the system chose, where that was 0."""
        assert self._server is not None, "the listener is not started"  # noqa: S101
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """Listen no more; what is being answered is cut off."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._tasks.add(task)
        connection = _Connection(reader, writer, self._limits)
        try:
            if len(self._tasks) > self._limits.connections:
                busy = Refusal("connections", "too many connections", "Close some", status=503)
                await Answer(connection).whole(response(busy))
            else:
                await connection.serve(self._handle)
        except (Gone, OSError, h11.LocalProtocolError) as error:
            logger.debug("a connection ended: %s", error)
        except asyncio.CancelledError:
            pass  # the listener stops
        finally:
            self._tasks.discard(task)
            await connection.close()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)

    async def serve(self, handle: Handle) -> None:
        """Answer one request after the other."""
        while self._http.trailing_data[0] or await self._more():
            try:
                received = await self._receive()
            except Refusal as refusal:
                await self._refuse(refusal)
                return
            if received is None:
                return
            await self._answer(received, handle)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    # -- reading ---------------------------------------------------------------------------------------
    async def _receive(self) -> Received | None:
        """The next request; None when the client has left.

        Raises:
            Refusal: it is too slow, too large, or no HTTP.

        """
        limits = self._limits
        try:
            async with asyncio.timeout(limits.header_timeout):
                head = await self._event()
        except TimeoutError:
            raise _too_slow("header", limits.header_timeout) from None
        if not isinstance(head, h11.Request):
            return None
        try:
            async with asyncio.timeout(limits.body_timeout):
                body = await self._body()
        except TimeoutError:
            raise _too_slow("body", limits.body_timeout) from None
        if body is None:
            return None
        try:
            target = head.target.decode("ascii")
            fields = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers)
        except UnicodeDecodeError:
            raise Refusal("http", "the request is no HTTP") from None
        return Received(head.method.decode("ascii"), target, fields, body)

    async def _body(self) -> bytes | None:
        limits = self._limits
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        parts: list[bytes] = []
        size = 0
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > limits.request_bytes:
                    raise Refusal(
                        "request_bytes",
                        f"the body has more than {limits.request_bytes} bytes",
                        "Send less, or a reference to it",
                        status=413,
                        code=TOO_LARGE,
                    )
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(parts)
            else:
                return None

    async def _event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                raise Refusal("http", "the request is no HTTP/1.1 that can be taken", status=status) from None
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(_READ))

    async def _more(self) -> bool:
        """Wait for the first byte of a next request."""
        try:
            async with asyncio.timeout(_IDLE):
                data = await self._reader.read(_READ)
        except (TimeoutError, OSError):
            return False
        if data:
            self._http.receive_data(data)
        return bool(data)

    # -- answering -------------------------------------------------------------------------------------
    async def _answer(self, received: Received, handle: Handle) -> None:
        """Have a request answered; cancelled when the client leaves meanwhile."""
        work = asyncio.ensure_future(handle(received, Answer(self, received.method)))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and watch.done():
                if watch.result():
                    await asyncio.wait({work})
                else:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    raise Gone("the client has left")
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        work.result()

    async def _watch(self) -> bool:
        """Read ahead while a request is answered; False when the client leaves, True when it sends much."""
        ahead = 0
        while ahead < _AHEAD:
            try:
                data = await self._reader.read(_READ)
            except OSError:
                return False
            if not data:
                return False
            ahead += len(data)
            self._http.receive_data(data)
        return True

    async def send(self, *events: h11.Event) -> None:
        """Write, and wait until it may be on its way.

        Raises:
            Gone: the client takes nothing.

        """
        data = b"".join(self._http.send(event) or b"" for event in events)
        if not data:
            return
        self._writer.write(data)
        try:
            async with asyncio.timeout(self._limits.write_timeout):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise Gone(f"the client took nothing for {self._limits.write_timeout:g} s") from None
        except OSError as error:
            raise Gone("the client has left") from error

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer what was not read to its end, and close."""
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        answer = response(refusal)
        headers = {**answer.headers, "connection": "close"}
        await Answer(self).whole(HttpResponse(answer.status, headers, answer.body))
        await self._linger()

    async def _linger(self) -> None:
        """Take a little of what a refused client still sends: else it may never read why it was refused."""
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError, OSError):
            self._writer.write_eof()
            async with asyncio.timeout(_LINGER):
                while left > 0 and (data := await self._reader.read(_READ)):
                    left -= len(data)

    async def close(self) -> None:
        """Close; an answer that has no end yet is cut off so that the client notices."""
        if self._http.our_state is h11.SEND_BODY:
            self._writer.transport.abort()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


def _head(status: int, headers: Mapping[str, str]) -> h11.Response:
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return h11.Response(status_code=status, headers=fields)


def _too_slow(what: str, seconds: float) -> Refusal:
    text = f"the {what} did not come within {seconds:g} s"
    return Refusal("slow", text, "Send it at once", status=408, code=INVALID_REQUEST)
