"""The ``Agent``: what a program subclasses, starts and talks through."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin, overload

import orjson
from pydantic import BaseModel

from mas_nats import handlers
from mas_nats.calls import Calls
from mas_nats.config import TlsClientConfig, resolve
from mas_nats.due import due
from mas_nats.errors import ConfigurationError, MasError, Unavailable
from mas_nats.inbox import Inbox
from mas_nats.loop import run
from mas_nats.message import AgentMessage, Payload, ReplyResult
from mas_nats.messenger import AgentInfo, Messenger
from mas_nats.names import names
from mas_nats.nats_transport import NatsTransport
from mas_nats.session import Session
from mas_nats.state import S, StateShape, StateStore
from mas_nats.state_access import StateAccess
from mas_nats.stopping import Stop, unless
from mas_nats.stream import Stream
from mas_nats.telemetry.choice import choose
from mas_nats.telemetry.watching import Telemetry
from mas_nats.transport import Connection, Transport
from mas_nats.wire.identity import require_id

START_TIMEOUT = 10.0
"""Seconds that ``start`` waits for a broker and a policy worker."""
DRAIN_TIMEOUT = 30.0
"""Seconds that ``stop`` gives running handlers."""
_LAST_WRITES = 5.0
"""Seconds that it gives updates of the state that are under way."""
M = TypeVar("M", bound=BaseModel)
_OPTIONS = ("capabilities", "metadata", "state_model", "server_addr", "tls", "receive", "transport")


@dataclass(slots=True)
class _Running(Generic[S]):
    """What exists between start and stop."""

    transport: Transport
    connection: Connection
    calls: Calls
    session: Session
    messenger: Messenger
    state: StateStore[S]
    telemetry: Telemetry | None


class Agent(Generic[S]):
    """One instance of an agent.

    Any number of instances may run under one ``agent_id``: they share its messages and its state, and each
    gets the replies to its own requests.

    Args:
        agent_id: who this is; the certificate must say the same.
        capabilities: what it offers, for ``discover``; only those its manifest declares count.
        metadata: JSON that ``discover`` shows to others.
        state_model: a pydantic model whose fields all have defaults. Not given: the model named in
            ``Agent[...]``, else a plain dict.
        server_addr: ``host:port`` or URL of the broker.
        tls: certificate files. For both see ``mas_nats.config`` when not given.
        receive: False for an instance that only sends and asks, such as a script: the agent's messages
            wait for its other instances, and ``discover`` does not count it.
        transport: another way to a broker than ``server_addr`` and ``tls``: see ``mas_nats.testing``.

    Raises:
        ConfigurationError: the id or the state model cannot be used.
        TypeError: an unknown option.

    """

    _handlers: ClassVar[dict[str, handlers.Handler]] = {}
    _argument: ClassVar[Any] = None  # what a class says for ``S``: a type, or a type variable of its own
    _declared_state: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the handlers of a subclass, and the state model it names in ``Agent[...]``."""
        super().__init_subclass__(**kwargs)
        cls._handlers = handlers.handlers_of(cls)
        cls._argument = argument = _argument_of(cls)
        if isinstance(argument, type) and (issubclass(argument, BaseModel) or is_dataclass(argument)):
            cls._declared_state = argument

    @overload
    def __init__(
        self,
        agent_id: str,
        *,
        capabilities: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
        state_model: type[S] | None = None,
        server_addr: str | None = None,
        tls: TlsClientConfig | None = None,
        receive: bool = True,
        transport: Transport | None = None,
    ) -> None: ...
    @overload
    def __init__(self, agent_id: str, **kwargs: object) -> None: ...
    def __init__(
        self,
        agent_id: str,
        *,
        capabilities: Any = (),
        metadata: Any = None,
        state_model: Any = None,
        server_addr: Any = None,
        tls: Any = None,
        receive: Any = True,
        transport: Any = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            name = next(iter(unknown))
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(_OPTIONS)}"
            raise TypeError(f"{type(self).__name__} got an unknown option {name!r}; {hint}")
        try:
            self._agent_id = require_id(agent_id, "agent id")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        self._capabilities = names("capabilities", capabilities or ())
        self._metadata = dict(metadata or {})
        try:
            orjson.dumps(self._metadata)
        except TypeError as error:
            raise ConfigurationError(
                f"the metadata of {agent_id!r} is not serialisable as JSON: {error}"
            ) from None
        self._shape: StateShape[S] = StateShape(state_model or self._declared_state)
        self._server_addr = server_addr
        self._tls = tls
        if transport is not None and (server_addr is not None or tls is not None):
            raise TypeError("transport= takes the place of server_addr= and tls=: give one or the other")
        self._transport: Transport | None = transport
        self._receive = bool(receive)
        self._running: _Running[S] | None = None
        self._inbox: Inbox | None = None
        self._last_state: S | None = None
        self._finished = asyncio.Event()
        self._starting: asyncio.Event | None = None  # set when the start that is under way has ended
        self._starter: asyncio.Task[Any] | None = None  # who makes it
        self._abandoned = False  # it was stopped before it was connected
        self._stopped: asyncio.Event | None = None  # set when the stop that is under way has ended
        self._stopper: asyncio.Task[Any] | None = None  # who makes it
        self._stopping_later: asyncio.Task[None] | None = None

    # -- who this is -------------------------------------------------------------------------------

    @property
    def agent_id(self) -> str:
        """The id under which it is addressed."""
        return self._agent_id

    @property
    def instance(self) -> str:
        """The name the policy service gave to this instance."""
        return self._alive().session.terms.instance

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it announces."""
        return self._capabilities

    # -- handlers ----------------------------------------------------------------------------------

    @overload
    @staticmethod
    def on(message_type: str, *, model: type[M]) -> handlers.TypedRegistration[M]: ...
    @overload
    @staticmethod
    def on(message_type: str, *, model: None = None) -> handlers.Registration: ...
    @staticmethod
    def on(message_type: str, *, model: type[BaseModel] | None = None) -> Any:
        """Register a method of a subclass for messages of ``message_type``.

        With ``model`` the payload is validated before the method runs, and the method takes
        ``(message, payload)``; a payload that does not fit is dead-lettered, never retried. A method may be
        registered for several types, one decorator each. A subclass inherits registrations; it overrides one
        by the method's name, or by registering another for the type.

        Raises:
            ConfigurationError: the method is not ``async def``, or takes the wrong arguments; or, where the
                class ends, it has another method for this type.

        """
        return handlers.registration(message_type, model)

    # -- lifecycle ---------------------------------------------------------------------------------

    async def start(self, *, timeout: float = START_TIMEOUT) -> None:
        """Connect, restore the state, run ``on_start``, then handle messages.

        Starting a started agent does nothing, and one that is being started or stopped is waited for.

        Raises:
            ConfigurationError: address or certificate is missing or wrong.
            IdentityRefused: the broker refused the certificate.
            Unavailable: no broker, or no policy worker, within ``timeout`` seconds; or the agent was stopped
                meanwhile.
            StateCorrupt: the stored state does not fit the model; see ``reset_state``.

        """
        task = asyncio.current_task()
        if self._stopper is task:
            raise Unavailable(f"agent {self._agent_id!r} is being stopped: start it after that")
        while (other := self._stopped or (self._starting if self._starter is not task else None)) is not None:
            await other.wait()
        if self._running is not None:
            return
        self._starting = over = asyncio.Event()
        self._starter, self._abandoned = task, False
        if self._finished.is_set():  # else somebody may wait already
            self._finished = asyncio.Event()
        try:
            await self._start(timeout)
        finally:
            self._starting = self._starter = None
            over.set()

    async def _start(self, timeout: float) -> None:
        running = await self._open(timeout)
        if self._abandoned:
            await _disconnect(running)
            raise self._stopped_meanwhile()
        self._running = running
        try:
            await running.state.refresh(timeout=timeout)
            await self.on_start()
            if self._stopped is not None:  # nothing is handled any more, and nobody would end the inbox
                await self._stopped.wait()
            if self._receive and self._running is running:
                self._inbox = inbox = self._make_inbox(running)
                running.messenger.busy = inbox.busy
                await inbox.start()
        except BaseException as error:
            if self._running is not running and isinstance(error, Exception):
                raise self._stopped_meanwhile() from error
            self._inbox = None
            await self._close()
            raise
        if self._running is not running:
            raise self._stopped_meanwhile()

    def _stopped_meanwhile(self) -> Unavailable:
        return Unavailable(f"agent {self._agent_id!r} was stopped while it was being started")

    async def stop(self, *, timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop taking messages, let running handlers finish, run ``on_stop``, disconnect.

        Handlers get ``timeout`` seconds; what they do not finish, and what was not started, is given back.
        Stopping a stopped agent does nothing, and one that is being stopped is waited for. Cancelled, it ends
        the handlers at once and disconnects. In a handler, in ``on_start`` and in ``on_stop`` it returns at
        once, as ``finish`` does, since it would wait for itself: what called it still finishes.
        """
        await asyncio.sleep(0)  # a handler that was begun at once is known as such only then
        task = asyncio.current_task()
        if self._stopper is task:
            return
        if self._starter is task or (self._inbox is not None and self._inbox.handling()):
            if self._stopped is None and self._stopping_later is None:
                self._stopping_later = asyncio.create_task(self._stop_later(timeout))
            return
        if self._stopped is not None:
            await self._stopped.wait()
            return
        if self._running is None:
            if self._starting is not None:  # it connects
                self._abandoned = True
                await self._starting.wait()
            return
        self._stopped = stopped = asyncio.Event()
        self._stopper = task
        try:
            await self._stop(timeout)
        finally:
            self._stopped = self._stopper = None
            stopped.set()
            self._finished.set()

    async def _stop(self, timeout: float) -> None:
        try:
            if self._inbox is not None:
                await self._inbox.stop(timeout)
            await self.on_stop()
        finally:
            self._inbox = None
            if (running := self._running) is not None:
                self._last_state = running.state.state
                try:
                    await self._close()
                finally:
                    self._last_state = running.state.state  # without what could not be written any more

    async def _stop_later(self, timeout: float) -> None:
        try:
            if self._starting is not None:
                await self._starting.wait()
            await self.stop(timeout=timeout)
        finally:
            self._stopping_later = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run_until_stopped(self) -> None:
        """Start, and stop on ``finish``, or on SIGTERM, SIGINT or SIGHUP where it is in the main thread.

        A second signal, at least a second later, ends running handlers at once: what they do not finish is
        given back.
        """
        stop = Stop()
        if threading.current_thread() is threading.main_thread():
            stop.on_signals()
        try:
            async with self:
                # Of this class: a subclass may have a handler with one of these names.
                await unless(stop.asked, Agent.finished(self))
                Agent.finish(self)
                await unless(stop.hurried, self.stop())
        finally:
            stop.off_signals()

    def run(self) -> None:
        """``run_until_stopped`` as a whole program."""
        run(self.run_until_stopped())

    def finish(self) -> None:
        """Say that this agent has done its work: who runs it (``run_until_stopped``, ``mas run``) stops it.

        Returns at once, so a handler may call it: that handler still finishes.
        """
        self._finished.set()

    async def finished(self) -> None:
        """Return when ``finish`` was called, or the agent stopped; that counts until the next start."""
        await self._finished.wait()

    async def on_start(self) -> None:
        """Called when connection and state are ready, before the first message is handled."""

    async def on_stop(self) -> None:
        """Called when the last handler has finished, before the connection is closed."""

    async def on_message(self, message: AgentMessage) -> None:
        """Called for messages of a type without a handler; dead-letters them unless overridden."""
        raise handlers.NotHandled(f"no handler for type {message.message_type!r}")

    # -- talking -----------------------------------------------------------------------------------

    async def send(
        self,
        target: str,
        message_type: str,
        data: Payload,
        *,
        id: str | None = None,  # noqa: A002 - it reads best where it is used
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float = 30.0,
    ) -> str:
        """Send a message and return its id once it is durable and its decision audited.

        ``target`` is an agent id, or ``namespace/agent``. ``data`` is a JSON object, or a model, whose fields
        are sent under their aliases. ``id`` names the message; repeating a send with the same id and content
        stores it once. ``timeout`` is in seconds, at most 120.

        With ``delay`` (seconds, or a timedelta) or ``at`` (a datetime with its time zone) the message is held
        until then, at most ``limits.max_delay``, and delivered after passing all checks once more; refused
        then, it is among the target's dead letters. A time in the past means at once. ``cancel`` takes back.

        Raises:
            Refused: policy said no (``PermissionDenied``, ``UnknownTarget``, ``InvalidMessage``, ...).
            Unavailable: nobody could take it; nothing happened.
            OutcomeUnknown: no answer came; repeat with ``id=error.message_id``.

        """
        messenger = self._alive().messenger
        when = due(delay, at)
        return await messenger.send(target, message_type, data, message_id=id, timeout=timeout, due=when)

    async def cancel(self, message_id: str, *, timeout: float = 30.0) -> bool:
        """Take back a delayed message of this agent; whether that was in time.

        False: nothing waits under this id, or it is being released at this moment. True: it is not delivered.
        ``timeout`` is in seconds.

        Raises:
            Unavailable: nobody could take it; nothing happened.
            OutcomeUnknown: no answer came; call it again.

        """
        return await self._alive().messenger.cancel(message_id, timeout=timeout)

    async def request(
        self,
        target: str,
        message_type: str,
        data: Payload,
        *,
        id: str | None = None,  # noqa: A002 - it reads best where it is used
        timeout: float = 60.0,
    ) -> AgentMessage:
        """Send a request and return the reply.

        ``timeout`` is in seconds, from now until the reply is here; at most 3600. A request not handled by
        then is not handled at all.

        Raises:
            RequestTimeout: no reply came.
            RequestFailed: there will be none: the target dead-lettered the request, or let it expire.
            Refused, Unavailable, OutcomeUnknown: as for ``send``.

        """
        messenger = self._alive().messenger
        return await messenger.request(target, message_type, data, message_id=id, timeout=timeout)

    def stream(
        self,
        target: str,
        message_type: str,
        data: Payload,
        *,
        id: str | None = None,  # noqa: A002 - it reads best where it is used
        timeout: float = 60.0,
    ) -> Stream:
        """Send a request and read the reply in parts, as they come: text, or JSON objects.

            async for chunk in agent.stream("writer", "tell", {"about": "whales"}):
                print(chunk, end="")

        The request is sent when the reading begins. ``timeout`` is in seconds, from then until the end of the
        reply; at most 3600. Neighbouring texts may arrive joined, and a long one cut; nothing is missing,
        repeated or out of order. Leaving the loop early stops the producer; to do so at once, use
        ``async with agent.stream(...) as chunks``. A reply that is not streamed comes as one object.

        Raises (while reading):
            RequestTimeout: the reply did not end in time.
            RequestFailed: the rest of it will not come; its ``decision`` says why.
            Refused, Unavailable, OutcomeUnknown: as for ``send``.

        """
        messenger = self._alive().messenger
        return messenger.stream(target, message_type, data, message_id=id, timeout=timeout)

    async def send_reply_envelope(
        self, message: AgentMessage, message_type: str, data: Payload
    ) -> ReplyResult:
        """Answer ``message``; the same as ``message.reply``."""
        return await self._alive().messenger.reply(message, message_type, data)

    async def discover(self, capabilities: Sequence[str] = (), *, timeout: float = 30.0) -> list[AgentInfo]:
        """Agents that are alive, that this one may reach, and that have all ``capabilities``.

        Raises:
            TypeError: ``capabilities`` is one name, not a list of names.
            Unavailable, OutcomeUnknown: no answer came; call it again.

        """
        return await self._alive().messenger.discover(capabilities, timeout=timeout)

    # -- state -------------------------------------------------------------------------------------

    @property
    def state(self) -> S:
        """The state as this instance knows it. Read it; change it with ``update_state``."""
        if self._running is not None:
            return self._running.state.state
        if self._last_state is not None:
            return self._last_state
        raise Unavailable(f"agent {self._agent_id!r} has not been started: its state is not restored yet")

    async def update_state(self, changes: Mapping[str, object], *, timeout: float = 30.0) -> S:
        """Change fields of the state; durable when it returns. ``timeout`` is in seconds.

        Raises:
            StateInvalid: an unknown field, a wrong type, or too large. Nothing was written.
            StateConflict: another instance wrote first; ``state`` shows what it wrote. Decide again.
            Unavailable: nobody could take it; nothing was written.
            OutcomeUnknown: no answer came; ``refresh_state`` shows what is stored.

        """
        return await self._alive().state.update(changes, timeout=timeout)

    async def refresh_state(self, *, timeout: float = 30.0) -> S:
        """Read the stored state; never older than what this instance has written.

        Raises:
            StateCorrupt: what is stored does not fit the model. It is left as it is.

        """
        return await self._alive().state.refresh(timeout=timeout)

    async def reset_state(self, *, timeout: float = 30.0) -> S:
        """Go back to the model's defaults and delete what is stored, corrupt or not.

        Also on an agent that is not started, since a corrupt state keeps it from starting.
        """
        if self._running is not None:
            return await self._running.state.reset(timeout=timeout)
        running = await self._open(timeout)
        try:
            return await running.state.reset(timeout=timeout)
        finally:
            await _disconnect(running)

    # -- inside ------------------------------------------------------------------------------------

    def _make_inbox(self, running: _Running[S]) -> Inbox:
        return Inbox(
            running.connection,
            running.calls,
            running.session,
            running.transport.signs_of_life(self._agent_id, lambda: running.session.terms.ack_wait),
            agent=self._agent_id,
            handle=partial(handlers.dispatch, self, self._handlers),
            replier=running.messenger,
            now=running.transport.now,
            telemetry=running.telemetry,
        )

    def _alive(self) -> _Running[S]:
        if self._running is None:
            raise Unavailable(f"agent {self._agent_id!r} is not started: await agent.start() first")
        return self._running

    async def _open(self, timeout: float) -> _Running[S]:
        end = asyncio.get_running_loop().time() + timeout
        transport = self._transport or NatsTransport(resolve(self._agent_id, self._server_addr, self._tls))
        connection = transport.connection(self._agent_id)
        calls = Calls(connection, self._agent_id)
        session = Session(calls, self._capabilities, self._metadata, receives=self._receive)
        telemetry = choose(self._agent_id, lambda: session.terms.namespace)
        messenger = Messenger(
            connection, calls, session, self._agent_id, now=transport.now, telemetry=telemetry
        )
        state = StateStore(StateAccess(connection, calls, session, self._agent_id), session, self._shape)
        running = _Running(transport, connection, calls, session, messenger, state, telemetry)
        try:
            await connection.open(timeout)
            await session.open(end - asyncio.get_running_loop().time())
            connection.after_reconnect.append(session.resume)
            await messenger.start()
        except BaseException:
            await _disconnect(running)
            raise
        return running

    async def _close(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await _disconnect(running)


def _argument_of(cls: type[Agent[Any]]) -> object:
    """What ``cls`` says for ``S`` of ``Agent[S]``, itself or by its bases; None where it says nothing."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if not (isinstance(origin, type) and issubclass(origin, Agent)):
            continue  # another generic base: its arguments are no state
        given = get_args(base)
        argument: object = next(iter(given), None) if origin is Agent else origin._argument  # noqa: SLF001
        if origin is not Agent and isinstance(argument, TypeVar):
            argument = dict(zip(getattr(origin, "__parameters__", ()), given, strict=False)).get(argument)
        if argument is not None:
            return argument
    return None


async def _disconnect(running: _Running[Any]) -> None:
    try:
        await running.messenger.close()
        await running.state.settle(_LAST_WRITES)
        with contextlib.suppress(MasError):
            await running.session.close()
    finally:
        await running.connection.close()
        if running.telemetry is not None:
            await running.telemetry.flush()
