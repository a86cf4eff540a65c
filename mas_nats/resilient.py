"""The NATS client both sides use: it survives what nats-py takes as the end.

nats-py closes for good on any ``-ERR`` but "stale connection", so an expired user JWT, a kick or a
revoked signing key would end a process that only has to connect again (DESIGN 9). And it repeats a
refused first connect for ever while it hides the cause. Both are mended here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from nats import errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from mas_nats.asking import AskingClient, Transport
from mas_nats.errors import ConfigurationError, IdentityRefused, Unavailable

_BATCHES = sys.platform == "linux"
_LEAVING = 1.0
"""Seconds for which a connection that is left may go on sending."""
ErrorCallback = Callable[[Exception], Awaitable[None]]

_CONNECTION_STAYS = (
    "permissions violation",
    "invalid subject",
    "invalid publish subject",
    "maximum subscriptions exceeded",
)
_DENIED = re.compile(r'permissions violation for publish to "([^"]+)"')
_REFUSED = ("authorization violation", "authentication", "user authentication", "account")
_CERTIFICATE_REFUSED = ("certificate", "unknown ca", "handshake failure", "alert")


class ResilientClient(AskingClient):
    """A nats-py client that reconnects where the server ended the connection, whatever the reason.

    A connection that the server keeps (a refused publish, a bad subject) is reported to ``error_cb`` and
    stays. After ``close()`` or ``drain()`` it is closed, as usual.
    """

    _jitter = 0.0

    async def close(self) -> None:
        """Close it, also in the moment in which the server went away. What waits for an answer fails."""
        try:
            await super().close()
        except AttributeError:
            # nats-py writes what is pending to a TLS transport that asyncio has given up already.
            self._pending_data_size, self._status = 0, Client.DISCONNECTED
            if self._writes_nowhere():
                self._transport = None
            await super().close()

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002 - as nats-py has it
        # First, since a silent server takes long to leave; nothing is asked of a closed connection any more.
        self._questions.give_up(errors.ConnectionClosedError)
        self._receive_no_more()
        await super()._close(status, do_cbs)

    def _writes_nowhere(self) -> bool:
        """Whether the server went away while TLS began: then asyncio leaves a writer without a transport."""
        writer: Any = getattr(self._transport, "_io_writer", None)
        return writer is not None and writer.transport is None

    async def connect_within(
        self, seconds: float, *, error_cb: ErrorCallback, reconnect_jitter: float = 0.0, **options: Any
    ) -> None:
        """Connect, repeating for at most ``seconds`` while nothing listens there.

        ``options`` are those of nats-py's ``connect``. Once connected, it reconnects for ever, to any of the
        servers it was given; each attempt is put off by up to ``reconnect_jitter`` seconds at random.

        Raises:
            IdentityRefused: the server refused the certificate or the credentials. Not repeated.
            ConfigurationError: the server's own certificate is not the one expected. Not repeated.
            Unavailable: nobody answered within ``seconds``.

        """
        self._jitter = reconnect_jitter
        verdict: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        last: list[Exception] = []

        async def on_error(error: Exception) -> None:
            if connecting.done():
                await error_cb(error)
                return
            last.append(error)
            if (final := _final(error)) is not None and not verdict.done():
                verdict.set_result(final)

        options = {
            "allow_reconnect": True,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.1,
            "connect_timeout": 5,
        } | options
        connecting = asyncio.ensure_future(self.connect(error_cb=on_error, **options))
        try:
            either: set[asyncio.Future[Any]] = {connecting, verdict}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
                # The servers were shuffled; from here on the order stays, so that after one comes another.
                self.options["dont_randomize"] = True
                return
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                await self.close()
                self._abandon()
        if verdict.done():
            raise verdict.result()
        cause = last[-1] if last else None
        raise Unavailable(
            f"no NATS server answered at {options.get('servers')} within {seconds:g} s"
            + (f" ({cause!r})" if cause else "")
        ) from cause

    def batch_reads(self, size: int) -> None:
        """Be woken up only once ``size`` bytes have arrived (1: by any), until the next call or connection.

        Keeps everything on this connection waiting, but not its end, which is noticed at once. Only on Linux:
        elsewhere it makes no difference.
        """
        writer = self._writer()
        if not _BATCHES or writer is None or self._writes_nowhere() or writer.is_closing():
            return
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    # -- connecting --------------------------------------------------------------------------------------
    async def _connect_to_server(self, s: Any) -> None:
        if self._jitter and self.is_reconnecting:
            await asyncio.sleep(random.uniform(0, self._jitter))
        if (connecting := asyncio.current_task()) is not None and connecting.cancelling():
            raise asyncio.CancelledError  # swallowed on the way here; another task reconnects by now
        self._abandon()
        await super()._connect_to_server(s)
        if type(self._transport) is TcpTransport:
            self._transport = Transport(self._transport)

    def _abandon(self) -> None:
        # nats-py forgets the socket of an attempt that failed, and it stays open until it is collected.
        if (writer := self._writer()) is not None:
            writer.transport.abort()

    def _connect_command(self) -> bytes:
        # nats-py starts TLS only where the server's greeting asks for it, and whoever sits between could
        # leave that out. CONNECT, and all that waits to be sent, come after this line.
        if "tls" in self.options and not self._encrypted():
            raise errors.SecureConnWantedError
        self._tell_protocol()
        command: bytes = super()._connect_command()
        return command

    def _tell_protocol(self) -> None:
        # nats-py upgrades to TLS without telling the stream's protocol, which then logs a warning at
        # every end of a connection.
        writer = self._writer()
        protocol: Any = writer.transport.get_protocol() if writer is not None else None
        if hasattr(protocol, "_over_ssl"):
            protocol._over_ssl = self._encrypted()  # noqa: SLF001

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        if not self.is_connected:  # the server closed instead of answering; nats-py takes it for success
            for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
                if task is not None:
                    task.cancel()
            raise errors.UnexpectedEOF

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes the PING ahead of what still waits in its buffer, so that flush() would return
        # before a subscription, an unsubscription or a publish made earlier has reached the server.
        self._write_pending()
        await super()._send_ping(future)

    def _write_pending(self) -> None:
        if self.is_connected and self._pending and self._transport is not None:
            self._transport.writelines(self._pending[:])
            self._pending = []
            self._pending_data_size = 0

    async def flush(self, timeout: float = 10) -> None:
        """Wait until the server has taken everything that was sent so far, for at most ``timeout`` seconds.

        Raises:
            nats.errors.FlushTimeoutError: it has not.
            nats.errors.ConnectionReconnectingError: there is no connection, or it was lost meanwhile.
            nats.errors.ConnectionClosedError: it is closed.

        """
        if self.is_closed:
            raise errors.ConnectionClosedError
        if self.is_reconnecting:
            raise errors.ConnectionReconnectingError
        taken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            await self._send_ping(taken)
        except AttributeError:  # asyncio has given it up already, which nats-py is about to notice
            raise errors.ConnectionReconnectingError from None
        try:
            # Not wait_for, as nats-py does: it can swallow the cancellation of a reconnect that begins anew.
            async with asyncio.timeout(timeout):
                await taken
        except TimeoutError:
            raise errors.FlushTimeoutError from None

    async def force_reconnect(self) -> None:
        """Leave this connection for another one.

        What was published is sent, over the next one where this one takes nothing any more within a second;
        what waits for an answer fails.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + _LEAVING
        while self._leaves and not self._sent() and loop.time() < ends:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
        if not self._leaves:
            return
        if (writer := self._writer()) is not None:  # a server that is silent does not end TLS
            loop.call_later(_LEAVING, writer.transport.abort)
        await super().force_reconnect()
        self._fail_requests()
        if inbox := self._inbox.encode():
            self._keep([command for command in self._pending if inbox not in command.partition(b"\r\n")[0]])

    @property
    def _leaves(self) -> bool:
        return bool(self.is_connected and not self.is_draining and self.options["allow_reconnect"])

    def _sent(self) -> bool:
        """Write what waits if the connection takes it; whether everything has left."""
        if not isinstance(self._transport, Transport) or not self._transport.idle:
            return False
        self._write_pending()
        return self._transport.idle

    async def _process_pong(self) -> None:
        # The answer to a flush that was given up meanwhile ends nats-py's reading for good, and the
        # connection falls silent until its pings are given up, too.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_op_err(self, e: Exception) -> None:
        if not self.is_closed and not self.is_reconnecting:
            if (writer := self._writer()) is not None:
                writer.transport.abort()  # a polite TLS shutdown takes half a minute when nobody answers
            self._give_up_requests()
        await super()._process_op_err(e)

    def _give_up_requests(self) -> None:
        # nats-py lets them wait for their timeout, though the answers were lost with the connection. What was
        # not sent yet it would send over the next one, after whoever asked has been told that it failed.
        # Subscriptions are made anew there, so only what ends one has to be sent still.
        self._keep([command for command in self._pending if command.startswith(b"UNSUB")])
        self._fail_requests()

    def _keep(self, commands: list[bytes]) -> None:
        self._pending = commands
        self._pending_data_size = sum(map(len, commands))

    def _fail_requests(self) -> None:
        self._questions.give_up(errors.ConnectionReconnectingError)
        for answer in self._pongs:
            if not answer.done():
                answer.set_exception(errors.ConnectionReconnectingError())
                answer.exception()  # nobody may be waiting for it: a ping that only keeps the connection

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the reconnecting
                await self._error_cb(error)
                await asyncio.sleep(self.options["reconnect_time_wait"])
            else:
                return

    def _encrypted(self) -> bool:
        writer = self._writer()
        return writer is not None and _encrypted(writer)

    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("'").lower()
        if (denied := _DENIED.search(text)) is not None:
            self._questions.denied(denied[1])
        if any(known in text for known in _CONNECTION_STAYS):
            await self._error_cb(errors.Error(f"nats: {err_msg}"))
            return
        if self.is_connecting or not self.options["allow_reconnect"]:
            await super()._process_err(err_msg)
            return
        error = errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        await self._process_op_err(error)


def _encrypted(writer: asyncio.StreamWriter) -> bool:
    return writer.get_extra_info("ssl_object") is not None


def _final(error: Exception) -> Exception | None:
    """The typed error where repeating the first connect cannot help."""
    text = str(error).lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"the server's certificate is not trusted: {error.verify_message}. "
            "Check the CA file and the server name."
        )
    if isinstance(error, ssl.SSLError) and any(word in text for word in _CERTIFICATE_REFUSED):
        return IdentityRefused(
            f"the server refused this certificate during the TLS handshake ({error.reason}): "
            "it is expired, or issued by a CA the server does not know"
        )
    if isinstance(error, errors.SecureConnWantedError):
        return ConfigurationError(
            "the server does not use TLS: this is not the broker, or it is misconfigured"
        )
    if isinstance(error, errors.Error) and any(word in text for word in _REFUSED):
        return IdentityRefused(
            f"the server refused this identity ({text.removeprefix('nats: ')}): it is not in the policy, "
            "its certificate was revoked, or it does not carry exactly one SPIFFE id"
        )
    return None
