"""The in-memory transport: an agent's connection to the server of a ``MemoryBroker``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from mas_nats.errors import IdentityRefused, MasError, PermissionDenied, Unavailable
from mas_nats.testing.deciding import MAX_PAYLOAD
from mas_nats.testing.server import NO_RESPONDERS, MemoryServer, NotGranted
from mas_nats.testing.subscription import MemorySubscription
from mas_nats.transport import Incoming, Listener, NoAnswer, NoResponders, NotSent, Receive
from mas_nats.wire.verdict import Decision, Verdict

logger = logging.getLogger("mas_nats")


@dataclass(frozen=True, slots=True)
class MemoryTransport:
    """The way of ``agent`` to ``server``."""

    server: MemoryServer
    agent: str

    def connection(self, name: str) -> MemoryConnection:
        """A connection that is not open yet."""
        return MemoryConnection(self.server, self.agent, name)

    def signs_of_life(  # the server asks
        self,
        name: str,  # noqa: ARG002
        ack_wait: Callable[[], float],  # noqa: ARG002
    ) -> MemorySigns:
        """Handlers count as alive while their connection is."""
        return MemorySigns(self.server)

    def now(self) -> float:
        """The broker's time."""
        return self.server.now()


class MemorySigns:
    """Which deliveries are being handled. No thread: the server asks instead of being told."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    def add(self, ack_subject: str) -> None:
        """A handler starts."""
        self._server.handled.add(ack_subject)

    def remove(self, ack_subject: str) -> None:
        """A handler has ended."""
        self._server.handled.discard(ack_subject)

    async def stop(self) -> None:
        """No handler is left."""


@dataclass(slots=True, eq=False)
class MemoryConnection:
    """One agent instance's connection."""

    server: MemoryServer
    agent: str
    name: str
    before_reconnect: list[Listener] = field(default_factory=list)
    after_reconnect: list[Listener] = field(default_factory=list)
    at_loss: list[Callable[[], None]] = field(default_factory=list)
    _subscriptions: list[MemorySubscription] = field(default_factory=list)
    _waiting: set[asyncio.Future[Incoming]] = field(default_factory=set)
    _buffer: list[tuple[str, bytes, str]] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: bool = False
    _life: int = 0  # counts connections: what was sent to an earlier one does not arrive
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self, timeout: float) -> None:
        """Connect.

        Raises:
            IdentityRefused: the broker's policy does not know this agent.
            Unavailable: the broker cannot be reached for ``timeout`` seconds.

        """
        self._require_known()
        self.server.connections[self] = None
        if self.agent in self.server.cut:
            await asyncio.sleep(timeout)
            if self.agent in self.server.cut:
                del self.server.connections[self]
                raise Unavailable(f"no broker answered within {timeout:g} s: the test cut {self.agent} off")
        self._connect()

    async def close(self) -> None:
        """Disconnect. Exchanges that still wait get ``NoAnswer``."""
        self._closed = True
        self.lost()
        for task in tuple(self._tasks):
            task.cancel()
        self.server.connections.pop(self, None)

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, in bytes, headers included."""
        return MAX_PAYLOAD

    # -- what the SDK does -------------------------------------------------------------------------

    async def exchange(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> Incoming:
        """Publish and wait for the one answer. Errors as the protocol says."""
        end = asyncio.get_running_loop().time() + timeout
        await self._connected(timeout)
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            self.server.take(self, subject, body, dict(headers or {}), partial(self._answer, future))
            async with asyncio.timeout_at(end):
                answer = await future
        except NotGranted:
            raise PermissionDenied(_denial(subject)) from None
        except TimeoutError:
            raise NoAnswer(f"no answer from {subject} in time") from None
        finally:
            self._waiting.discard(future)
            self.server.changed.set()
        if answer.status == NO_RESPONDERS:
            raise NoResponders(f"nobody answers {subject}")
        return answer

    async def publish(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        """Publish. While the broker is away it is buffered and sent after the reconnect.

        Raises:
            NotSent: the connection was closed.

        """
        if self._closed:
            raise NotSent("the connection is closed")
        if self._ready.is_set():
            self.server.publish(self, subject, body, reply)
        else:
            self._buffer.append((subject, body, reply))

    async def subscribe(self, subject: str, receive: Receive) -> MemorySubscription:
        """Call ``receive`` for every message on ``subject``, in order."""
        subscription = MemorySubscription(subject, receive)
        self._subscriptions = [each for each in self._subscriptions if each.wanted]
        self._subscriptions.append(subscription)
        return subscription

    async def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything sent to this connection so far was received."""
        try:
            await self._connected(timeout)
        except MasError:
            return False
        await asyncio.sleep(0)
        return True

    async def reconnect(self) -> None:
        """Connect anew: permissions are those of the moment of connecting."""
        for listener in self.before_reconnect:
            await _guarded(listener)
        self.lost()

    # -- what the server does ----------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._waiting)

    def listens(self, subject: str) -> bool:
        """Whether it would get what is sent to ``subject``."""
        return self._ready.is_set() and any(
            each.open and each.matches(subject) for each in self._subscriptions
        )

    def deliver(self, incoming: Incoming) -> None:
        """Send it something; it arrives with the next turn of the loop."""
        for subscription in self._subscriptions:
            if subscription.open and subscription.matches(incoming.subject):
                asyncio.get_running_loop().call_soon(self._arrive, self._life, subscription, incoming)

    def handles(self, ack_subject: str) -> bool:
        """Whether it says that this delivery is being handled."""
        return self._ready.is_set() and ack_subject in self.server.handled

    def lost(self) -> None:
        """The server, or the way to it, went away. Comes back by itself unless it was cut off."""
        if not self._ready.is_set():
            return
        self._ready.clear()
        self._life += 1
        self.server.connected.pop(self, None)
        for future in self._waiting:
            if not future.done():
                future.set_exception(NoAnswer("the connection was lost"))
        if not self._closed and self.agent not in self.server.cut:
            asyncio.get_running_loop().call_soon(self.back)

    def back(self) -> None:
        """Connect again where that is possible."""
        if self._closed or self._ready.is_set() or self.agent in self.server.cut or not self._known():
            return
        self._connect()
        buffered, self._buffer = self._buffer, []
        for subject, body, reply in buffered:
            self.server.publish(self, subject, body, reply)
        for listener in self.after_reconnect:
            task = asyncio.ensure_future(_guarded(listener))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # -- inside ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self.server.connected[self] = None
        self._ready.set()

    def _known(self) -> bool:
        return self.agent in self.server.document.agents

    def _require_known(self) -> None:
        if not self._known():
            raise IdentityRefused(
                f"the broker refused agent {self.agent!r}: it is not in the policy. "
                "Declare it: MemoryBroker(agents=...)"
            )

    async def _connected(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._ready.wait()
            return
        self._require_known()
        raise NotSent(f"the broker is away: the test cut {self.agent} off")

    def _answer(self, future: asyncio.Future[Incoming], answer: Incoming) -> None:
        asyncio.get_running_loop().call_soon(self._answered, self._life, future, answer)

    def _answered(self, life: int, future: asyncio.Future[Incoming], answer: Incoming) -> None:
        if life == self._life and not future.done():
            future.set_result(answer)

    def _arrive(self, life: int, subscription: MemorySubscription, incoming: Incoming) -> None:
        if life == self._life and subscription.wanted:
            subscription.receive(incoming)


def _denial(subject: str) -> Verdict:
    return Verdict(
        Decision.AUTHZ_DENIED,
        ok=False,
        step="connection",
        rule="grant",
        reason=f"this agent may not use {subject}",
        fix="An agent uses its own calls, deliveries, replies and (where that is direct) state",
    )


async def _guarded(listener: Listener) -> None:
    try:
        await listener()
    except MasError as error:
        logger.warning("after a reconnect: %s", error)
