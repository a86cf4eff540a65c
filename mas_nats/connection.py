"""The connection to the broker: the only SDK module, beside ``resilient``, that knows nats-py.

It connects with mutual TLS 1.3, reconnects for ever, follows renewed certificates, and answers exchanges
with typed errors instead of silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from nats import errors as nats_errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mas_nats.config import Endpoint
from mas_nats.errors import (
    ConfigurationError,
    IdentityRefused,
    InvalidMessage,
    MasError,
    PermissionDenied,
    Unavailable,
)
from mas_nats.questions import PublishDenied
from mas_nats.resilient import ResilientClient
from mas_nats.transport import Incoming, Listener, NoAnswer, NoResponders, NotSent, Receive
from mas_nats.wire.verdict import Decision, Verdict

logger = logging.getLogger("mas_nats")

_CERTIFICATE_CHECK = 1.0
"""Seconds between two looks at the certificate files."""
_PING_INTERVAL = 5
"""Seconds between pings; a silent server is given up after two."""
_RECONNECT_WAIT = 0.25
"""Seconds between two attempts to reconnect."""
_RECONNECT_JITTER = 0.5
"""Seconds at most by which an attempt is put off at random, so that not all agents come at once."""
_GATHERING = 2.0
"""Seconds for which workers are waited for that are about to reconnect, where there are several nodes."""
_GATHER_PAUSE = 0.1
_DEAF = 8.0
"""Seconds without any answer after which another node is tried, where there are several."""
_AWAY = 2.0
"""Seconds without a connection after which that is logged; a planned reconnect takes less."""
_BUFFER = 8 << 20
"""Bytes kept for a server that is away."""


class NatsSubscription:
    """A standing subscription; it survives reconnects."""

    def __init__(self, inner: Subscription) -> None:
        self._inner = inner

    async def drain(self) -> None:
        """End it, after everything the broker had sent for it was received."""
        with contextlib.suppress(nats_errors.Error, OSError):
            await self._inner.drain()  # type: ignore[no-untyped-call]

    async def end(self) -> None:
        """End it now; what is on the way is dropped."""
        with contextlib.suppress(nats_errors.Error, OSError):
            await self._inner.unsubscribe()


class NatsConnection:
    """One agent instance's connection.

    ``before_reconnect`` runs before a planned reconnect (new certificate files), so that nothing is on its
    way when the connection changes; ``after_reconnect`` runs after any. ``at_loss`` is called when a
    connection is lost, before anything comes from the next.
    """

    def __init__(self, endpoint: Endpoint, *, name: str) -> None:
        self.before_reconnect: list[Listener] = []
        self.after_reconnect: list[Listener] = []
        self.at_loss: list[Callable[[], None]] = []
        self._endpoint = endpoint
        self._name = name
        self._client = ResilientClient()
        self._ready = asyncio.Event()
        self._refusal = ""
        self._logged = ""
        self._opened = False
        self._closing = False
        self._several = len(endpoint.servers) > 1
        self._in_vain_since: float | None = None
        self._anew = 0.0  # what began before went through an earlier connection, by the loop's clock
        self._stamps: tuple[int, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._away: asyncio.Task[None] | None = None

    async def open(self, timeout: float) -> None:
        """Connect.

        Raises:
            ConfigurationError: a certificate file, or the broker's own certificate, cannot be used.
            IdentityRefused: the broker refused this certificate. Not repeated.
            Unavailable: no broker answered within ``timeout`` seconds.

        """
        self._stamps = self._file_stamps()
        context = self._endpoint.context()
        self._opened = True
        await self._client.connect_within(
            timeout,
            error_cb=self._on_error,
            servers=self._endpoint.servers,
            tls=context,
            name=self._name,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            reconnect_time_wait=_RECONNECT_WAIT,
            reconnect_jitter=_RECONNECT_JITTER,
            ping_interval=_PING_INTERVAL,
            pending_size=_BUFFER,
        )
        try:
            await self._client.flush()
        except (nats_errors.Error, OSError) as error:
            await self.close()
            raise Unavailable(f"the broker at {self._endpoint.url} went away: {error}") from error
        self._ready.set()
        self._spawn(self._follow_certificates())

    async def close(self) -> None:
        """Flush and disconnect. Exchanges that still wait get ``NoAnswer``."""
        if not self._opened:
            return
        self._closing = True
        for task in tuple(self._tasks):
            task.cancel()
        with contextlib.suppress(nats_errors.Error, OSError, TimeoutError):
            if self._client.is_connected:
                await self._client.flush(timeout=2)
        with contextlib.suppress(nats_errors.Error, OSError):
            await self._client.close()

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, in bytes, headers included."""
        return self._client.max_payload

    async def exchange(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> Incoming:
        """Publish and wait for the one answer.

        Raises:
            NotSent: there was no connection for ``timeout`` seconds; nothing was sent.
            IdentityRefused: the same, because the broker refuses this certificate.
            NoAnswer: no answer within ``timeout`` seconds, or the connection was lost meanwhile.
            NoResponders: nobody is there to take it.
            PermissionDenied: this identity may not publish to ``subject``.
            InvalidMessage: it is larger than the server takes; nothing was sent.

        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        end = begun + timeout
        while True:
            try:
                answer = await self._exchange(subject, body, headers, end)
            except NoAnswer:
                self._asked_in_vain(begun)
                raise
            except NoResponders:
                # With several nodes, who was connected to one that was lost is about to be back.
                if not self._several or loop.time() + _GATHER_PAUSE > min(end, begun + _GATHERING):
                    self._asked_in_vain(begun)
                    raise
                await asyncio.sleep(_GATHER_PAUSE)
            else:
                self._in_vain_since = None
                return answer

    def _asked_in_vain(self, begun: float) -> None:
        """Go to another node when this one has answered nothing for long: it may be cut off."""
        if begun < self._anew:
            return  # all that was under way ends with a connection, and would take the next one for deaf, too
        if self._in_vain_since is None:
            self._in_vain_since = begun
        if self._several and asyncio.get_running_loop().time() - self._in_vain_since > _DEAF:
            self._begin_anew()
            logger.warning("%s: no answers through this node, trying another", self._name)
            self._spawn(self._client.force_reconnect())

    async def _exchange(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, end: float
    ) -> Incoming:
        await self._connected(end)
        try:
            fields = dict(headers) if headers else None
            left = end - asyncio.get_running_loop().time()
            answer = await self._client.request(subject, body, timeout=left, headers=fields)
        except nats_errors.TimeoutError:
            raise NoAnswer(f"no answer from {subject} in time") from None
        except nats_errors.NoRespondersError:
            raise NoResponders(f"nobody answers {subject}") from None
        except PublishDenied as denied:
            raise PermissionDenied(_denied(subject)) from denied
        except nats_errors.MaxPayloadError:
            raise _too_large(len(body), self._client.max_payload) from None
        except nats_errors.OutboundBufferLimitError as error:
            raise NotSent("the broker is away and the outgoing buffer is full") from error
        except (nats_errors.ConnectionReconnectingError, nats_errors.ConnectionClosedError) as error:
            self._begin_anew()
            raise NoAnswer(f"the connection was lost during {subject}") from error
        except nats_errors.Error as error:
            raise NoAnswer(f"{subject}: {error}") from error
        return _incoming(answer)

    async def publish(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        """Publish. While the broker is away it is buffered and sent after the reconnect.

        Raises:
            NotSent: the buffer is full, or the connection was closed.

        """
        try:
            await self._client.publish(subject, body, reply=reply)
        except (nats_errors.Error, OSError) as error:
            raise NotSent(str(error)) from error

    async def subscribe(self, subject: str, receive: Receive) -> NatsSubscription:
        """Call ``receive`` for every message on ``subject``, in order."""
        return NatsSubscription(await self._client.subscribe_together(subject, receive))

    async def flush(self, timeout: float = 5.0) -> bool:
        """Wait until the server has taken everything published so far; False when it did not in time."""
        try:
            async with asyncio.timeout(timeout):
                await self._client.flush(timeout=max(1, round(timeout)))
        except (nats_errors.Error, OSError, TimeoutError):
            return False
        return True

    # -- reconnecting ------------------------------------------------------------------------------

    async def _connected(self, end: float) -> None:
        if self._ready.is_set():
            if self._client.is_connected:
                return
            self._ready.clear()  # being left for another one
        try:
            async with asyncio.timeout_at(end):
                await self._ready.wait()
        except TimeoutError:
            if self._refusal:
                raise IdentityRefused(
                    f"the broker at {self._endpoint.url} refuses this certificate: {self._refusal}"
                ) from None
            raise NotSent(f"the broker at {self._endpoint.url} is away") from None

    async def _on_disconnected(self) -> None:
        self._ready.clear()
        self._begin_anew()
        for listener in self.at_loss:
            listener()
        if not self._closing and (self._away is None or self._away.done()):
            self._away = self._spawn(self._tell_away())

    async def _tell_away(self) -> None:
        """Say that the broker is away, and when it is back."""
        try:
            await asyncio.wait_for(self._ready.wait(), _AWAY)
        except TimeoutError:
            logger.warning("%s: the broker at %s is away; waiting for it", self._name, self._endpoint.url)
            await self._ready.wait()
            logger.warning("%s: the broker is back", self._name)

    async def _on_reconnected(self) -> None:
        self._refusal = self._logged = ""
        self._ready.set()
        for listener in self.after_reconnect:
            self._spawn(_guarded(listener))

    def _begin_anew(self) -> None:
        """What was silent until now says nothing about the connection that comes."""
        self._in_vain_since, self._anew = None, asyncio.get_running_loop().time()

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "authorization violation" in text.lower() or "authentication" in text.lower():
            self._refusal = text.removeprefix("nats: ")
        if text != self._logged and not isinstance(error, nats_errors.StaleConnectionError | OSError):
            self._logged = text  # the same refusal comes with every attempt to reconnect
            logger.warning("%s: %s", self._name, text)

    # -- certificates ------------------------------------------------------------------------------

    def _file_stamps(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in self._endpoint.tls.paths)
        except OSError:
            return self._stamps  # being replaced at this moment

    async def _follow_certificates(self) -> None:
        while True:
            await asyncio.sleep(_CERTIFICATE_CHECK)
            stamps = await asyncio.to_thread(self._file_stamps)
            if stamps == self._stamps:
                continue
            try:
                context = await asyncio.to_thread(self._endpoint.context)
            except ConfigurationError:
                continue  # half written: certificate and key do not match yet
            self._stamps = stamps
            await self._renew(context)

    async def _renew(self, context: ssl.SSLContext) -> None:
        logger.info("%s: new certificate, reconnecting", self._name)
        self._client.options["tls"] = context
        await self.reconnect()

    async def reconnect(self) -> None:
        """Connect anew: permissions are those of the moment of connecting."""
        for listener in self.before_reconnect:
            await _guarded(listener)
        await self._client.force_reconnect()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _guarded(listener: Listener) -> None:
    try:
        await listener()
    except (MasError, nats_errors.Error, OSError) as error:
        logger.warning("after a reconnect: %s", error)


def _denied(subject: str) -> Verdict:
    return Verdict(
        Decision.AUTHZ_DENIED,
        ok=False,
        step="connection",
        rule="grant",
        reason=f"this certificate may not use {subject}",
        fix="Use the certificate of the agent that the program says it is",
    )


def _too_large(size: int, limit: int) -> InvalidMessage:
    return InvalidMessage(
        Verdict(
            Decision.TOO_LARGE,
            ok=False,
            step="connection",
            rule="max_payload",
            reason=f"this has {size} bytes, the NATS server takes {limit}",
            fix="Send less, or a reference to the data instead",
        )
    )


def _incoming(message: Msg) -> Incoming:
    return Incoming(message.subject, message.reply, message.headers or {}, message.data)
