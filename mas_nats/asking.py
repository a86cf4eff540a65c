"""Requests are written, and what arrives is given, without nats-py's buffer, queue and tasks (ADR 40)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.js.api import Header
from nats.protocol.command import hpub_cmd, pub_cmd

from mas_nats import transport
from mas_nats.questions import Questions, fail
from mas_nats.read_together import ReadTogether
from mas_nats.wire.header_block import header_block, header_fields

_FEW = 2
"""Requests under way up to which each is written by itself; more are written together."""
_NOBODY = "503"
"""The status of an answer that says that nobody is there (ADR-4 of NATS)."""
Receive = Callable[[Msg], Awaitable[None]]


class Published(NamedTuple):
    """What is published, and to which nobody has to answer."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class Transport(TcpTransport):
    """nats-py's transport, which writes what waits at once, and can be waited for whenever the server went.

    Where that was while TLS began, the stream's protocol has been replaced and is never told of the end, so
    asyncio would wait for ever.
    """

    def __init__(self, inner: TcpTransport) -> None:
        vars(self).update(vars(inner))

    def writelines(self, payload: list[bytes]) -> None:
        """Write all of it in one record of TLS, since both sides have to handle each."""
        waits = payload[0] if len(payload) == 1 else b"".join(payload)
        self.write(waits)  # type: ignore[no-untyped-call]

    @property
    def idle(self) -> bool:
        """Whether everything that was written is on its way."""
        writer: Any = self._io_writer
        try:
            return not writer.transport.get_write_buffer_size()
        except AttributeError:  # asyncio has given it up
            return False

    async def wait_closed(self) -> None:
        """Wait until it has ended."""
        writer: Any = self._io_writer
        if writer is None or writer.transport is None:
            return
        # An established TLS transport is not asked: asyncio's forgets its protocol with the connection.
        tls = writer is not self._bare_io_writer
        if tls or isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol):
            await writer.wait_closed()
        else:
            writer.transport.abort()


class AskingClient(Client):
    """A nats-py client for whoever asks for one thing after the other, and for headers that anybody chose."""

    def __init__(self) -> None:
        super().__init__()
        self._questions = Questions()
        self._inbox = ""
        self._direct: dict[int, Receive | ReadTogether] = {}  # by subscription
        self._reports: set[asyncio.Task[None]] = set()

    async def subscribe_directly(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Call ``receive`` with each message as it is read, without a queue and a task between.

        Nothing else is read until it returns, so it must not wait for anything that comes this way.

        Raises:
            nats.errors.Error: the subject is none, or the connection is closed.

        """
        return await self._subscribe(subject, queue, receive)

    async def subscribe_together(self, subject: str, receive: transport.Receive) -> Subscription:
        """Call ``receive`` with each message, as soon as all that was read with it is taken apart.

        Raises: as ``subscribe_directly``.
        """
        return await self._subscribe(subject, "", ReadTogether(receive, self._report_later))

    async def _subscribe(self, subject: str, queue: str, receiver: Receive | ReadTogether) -> Subscription:
        number = self._sid + 1  # which nats-py gives it before anything else can
        self._direct[number] = receiver
        try:
            return await self.subscribe(subject, queue)
        except BaseException:
            self._direct.pop(number, None)
            raise

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._end(self._direct.pop(sid, None))
        super()._remove_sub(sid, max_msgs)

    def _receive_no_more(self) -> None:
        for receiver in self._direct.values():
            self._end(receiver)
        self._direct.clear()

    def _end(self, receiver: Receive | ReadTogether | None) -> None:
        if isinstance(receiver, ReadTogether):
            receiver.end()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if (receiver := self._direct.get(sid)) is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        fields = header_fields(headers) if headers else None
        if headers and fields is None:
            fields = await self._process_headers(headers)
        if isinstance(receiver, ReadTogether):
            receiver.add(subject, reply, fields or {}, data)
            return
        if (message := self._build_message(sid, subject, reply, data, fields)) is None:
            return
        try:
            await receiver(message)
        except asyncio.CancelledError:
            if (reading := asyncio.current_task()) is None or reading.cancelling():
                raise
            await self._report(errors.Error(f"whoever received a message on {message.subject} was cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the reading
            await self._report(error)

    def _report_later(self, error: Exception) -> None:
        task = asyncio.create_task(self._report(error))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            await self._error_cb(error)

    # -- requests ----------------------------------------------------------------------------------------
    async def _init_request_sub(self) -> None:
        self._inbox = f"{self._inbox_prefix.decode()}.{secrets.token_hex(11)}."
        self._resp_sub_prefix = bytearray(self._inbox.encode())
        try:
            await self.subscribe_directly(f"{self._inbox}*", self._questions.answered)
        except BaseException:
            self._resp_sub_prefix = None
            raise

    async def request_behind(
        self, first: Published, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str]
    ) -> Msg:
        """Publish ``first`` and, right behind it, a request: in one write, where that can be.

        Both subjects have to be subjects; that is not looked at. Raises: as ``request``.
        """
        answer = await self._request_new_style(subject, payload, timeout, headers, first)
        if answer.headers and answer.headers.get(Header.STATUS) == _NOBODY:
            raise errors.NoRespondersError
        return answer

    async def _request_new_style(
        self,
        subject: str,
        payload: bytes,
        timeout: float = 1,
        headers: dict[str, Any] | None = None,
        first: Published | None = None,
    ) -> Msg:
        # nats-py has a task write each request, and another one give each answer to who waits: whoever asks
        # for one thing after the other waits for both.
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        token, answer = self._questions.ask(subject)
        reply = self._inbox + token
        expiry = loop.call_at(end, fail, answer, errors.TimeoutError())
        try:
            if not self._write_at_once(subject, reply, payload, headers, first):
                async with asyncio.timeout_at(end):  # there may be no room
                    if first is not None:
                        await self.publish(first.subject, first.payload, headers=first.headers)
                    await self.publish(subject, payload, reply, headers)
            return await answer
        except TimeoutError:
            raise errors.TimeoutError from None
        finally:
            expiry.cancel()
            self._questions.forget(token)

    def _write_at_once(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        fields: dict[str, Any] | None,
        first: Published | None,
    ) -> bool:
        """Write a request, unless others wait, or it is one that only nats-py can write or refuse.

        Many at the same time are written together, since each write costs both sides.
        """
        if self._pending or len(self._questions) > _FEW:
            return False
        whole = self._command(subject, reply, payload, fields)
        if first is not None:
            before = self._command(first.subject, "", first.payload, first.headers)
            whole = whole and before and before + whole
        transport = self._transport
        if not whole or self._status != Client.CONNECTED:
            return False
        if not isinstance(transport, Transport) or not transport.idle:
            return False
        self.stats["out_msgs"] += 1 if first is None else 2
        self.stats["out_bytes"] += len(payload) if first is None else len(payload) + len(first.payload)
        transport.write(whole)  # type: ignore[no-untyped-call]
        return True

    def _command(self, subject: str, reply: str, payload: bytes, fields: dict[str, Any] | None) -> bytes:
        """What is written to publish this; nothing where only nats-py can write or refuse it."""
        block = header_block(fields) if fields else b""
        if block is None or len(payload) > self._max_payload:
            return b""
        command: bytes = (
            hpub_cmd(subject, reply, block, payload) if block else pub_cmd(subject, reply, payload)
        )
        return command

    # -- publishing and reading --------------------------------------------------------------------------
    async def publish_all(self, messages: Sequence[Published]) -> None:
        """Publish them one right behind the other. That their subjects are subjects is not looked at.

        Raises: as ``publish``.
        """
        commands = [self._command(each.subject, "", each.payload, each.headers) for each in messages]
        if self._status != Client.CONNECTED or not all(commands):
            for each in messages:
                await self.publish(each.subject, each.payload, headers=each.headers)
            return
        self.stats["out_msgs"] += len(messages)
        self.stats["out_bytes"] += sum(len(each.payload) for each in messages)
        await self._send_command(b"".join(commands))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        # nats-py checks and copies each header by itself: with ten of them that is most of a publish.
        block = header_block(headers) if subject and headers else None
        if block is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(hpub_cmd(subject, reply, block, payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        if headers and (fields := header_fields(headers)) is not None:
            return fields
        # What this raises ends nats-py's reading for good, and the connection falls silent for minutes. An
        # agent chooses these bytes: what cannot be read counts as no headers.
        try:
            return await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError) as error:
            await self._error_cb(error)
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        try:
            return super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            return None  # as above: a subject that is no text is nobody's
