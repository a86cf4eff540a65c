"""Calls that leave: recognised, or refused before they do; carried as a request whose reply is streamed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlsplit

from mas_nats.errors import MasError, RequestTimeout
from mas_nats.sidecar import strict_json
from mas_nats.sidecar.application import Application, Kind, Settings
from mas_nats.sidecar.authority import Authority, Leaving
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.carriage import Carried, Part
from mas_nats.sidecar.decision import decide
from mas_nats.sidecar.http_message import HttpRequest, HttpResponse, carried, repeated
from mas_nats.sidecar.in_flight import InFlight
from mas_nats.sidecar.listener import Answer, Gone, Received
from mas_nats.sidecar.llm import LlmPassage
from mas_nats.sidecar.llm_api import HEADERS, shape_of
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, REFUSED, Refusal, Shape, response
from mas_nats.sidecar.relay import Relay, parts_of
from mas_nats.sidecar.strict_json import NotStrict
from mas_nats.sidecar.told import told
from mas_nats.stream import Stream
from mas_nats.wire.correlation import new_message_id
from mas_nats.wire.identity import namespace_of

logger = logging.getLogger("mas_nats")

_GRACE = 3.0
"""Seconds more than the other sidecar may take, for clocks and for the way."""
_MISSED = 3
"""Signs of life that may be missing before the other sidecar is taken for dead."""


class Ask(Protocol):
    """Sends a request whose reply is read in parts: ``Messenger.stream``."""

    def __call__(
        self,
        target: str,
        message_type: str,
        data: Any,
        *,
        message_id: str | None,
        timeout: float,
        accepted_within: float | None,
    ) -> Stream:
        """See ``Messenger.stream``."""


class Outbound:
    """Takes what the application sends."""

    def __init__(
        self,
        settings: Settings,
        ask: Ask,
        authority: Authority,
        in_flight: InFlight,
        llm: LlmPassage | None = None,
        *,
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._ask = ask
        self._authority = authority
        self._in_flight = in_flight
        self._llm = llm
        self._now = now  # unix time, in seconds
        self._hosts = settings.hosts

    async def handle(self, received: Received, answer: Answer) -> None:
        """Answer one request of the application."""
        shape, request_id = Shape.PLAIN, None
        try:
            host, request = self._read(received)
            if self._is_llm(host):
                shape = shape_of(request)
                await self._to_llm(request, answer)
                return
            target = self._target(host)
            call = decide(request, caller=self._settings.own, target=self._settings.known(target))
            shape, request_id = call.shape, call.request_id
            await self._carry(request, host, target, call, answer)
        except Refusal as refusal:
            if shape is Shape.PLAIN:
                shape, request_id = _shape(received)
            known = refusal if refusal.shape is not Shape.PLAIN else refusal.to(shape, request_id)
            logger.warning("refused: %s", known)
            if answer.begun:
                raise ConnectionAbortedError(str(known)) from None
            await answer.whole(response(known))
        except (Gone, OSError):
            raise
        except Exception as error:
            # Not its text, which may hold content.
            logger.error("a request could not be carried: %s", type(error).__name__)
            if answer.begun:
                raise ConnectionAbortedError("it could not be carried to its end") from error
            text = "the sidecar failed: whether the call was run is not known"
            failed = Refusal("sidecar", text, "", 500, OUTCOME_UNKNOWN, ran="unknown")
            await answer.whole(response(failed.to(shape, request_id)))

    # -- what it is --------------------------------------------------------------------------------
    def _read(self, received: Received) -> tuple[str, HttpRequest]:
        """Host and request: what came is a proxy's request (absolute form), or one for a mapped host."""
        if twice := repeated(received.headers):
            raise Refusal("header", f"{twice} is there twice", "Send it once")
        headers = dict(received.headers)
        if received.method == "CONNECT":
            text = "tunnels are not carried: nobody could see what is in them"
            raise Refusal("connect", text, "Use http:// addresses", status=405, code=REFUSED)
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            text = "a page of a browser asks, and those are no applications"
            raise Refusal("origin", text, "Send no Origin header", status=403)  # MCP's own: no code of ours
        host, target = headers.get("host", "").lower(), received.target
        if not target.startswith("/"):
            try:
                parts = urlsplit(target)
            except ValueError:
                raise Refusal("target", "the request names no address", "Use http:// addresses") from None
            if parts.scheme != "http" or "@" in parts.netloc or not parts.netloc:
                raise Refusal("target", "the request names no http:// address", "Use http:// addresses")
            if parts.netloc.lower() != host:
                raise Refusal("host", "the Host header is not the host of the address", "Send the same host")
            target = target[len("http://") + len(parts.netloc) :] or "/"
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal("content_encoding", "compressed bodies are not taken", "Send it plain", status=415)
        if "upgrade" in headers:
            raise Refusal("upgrade", "other protocols are not carried", "Send no Upgrade header")
        path, _, query = target.partition("?")
        keeps = HEADERS.__contains__ if self._is_llm(host) else carried
        kept = {name: value.strip() for name, value in headers.items() if keeps(name)}
        return host, HttpRequest(received.method, path, query, kept, received.body)

    def _is_llm(self, host: str) -> bool:
        return bool(self._settings.llm_host) and self._settings.llm_host in {host, _plain(host)}

    def _target(self, host: str) -> str:
        target = self._hosts.get(host) or self._hosts.get(_plain(host))
        if target is None:
            fix = "Use one of the host names of the applications"
            text = f"host {host[:80]!r} stands for none of the applications"
            raise Refusal("unknown_host", text, fix, status=403, code=REFUSED)
        return target

    async def _to_llm(self, request: HttpRequest, answer: Answer) -> None:
        if self._llm is None or self._settings.own.type is not Kind.AGENT:
            text = "the traffic of this application to the language model is not carried"
            raise Refusal("llm", text, status=403, code=REFUSED)
        cause = self._in_flight.cause(request.header("traceparent"), needed=request.method == "POST")
        async with aclosing(self._llm.carry(request, cause)) as parts:
            async for part in parts:
                if isinstance(part, HttpResponse):
                    await answer.begin(part.status, part.headers)
                else:
                    await answer.write(part)
        await answer.end()

    # -- carrying it -------------------------------------------------------------------------------
    async def _carry(self, request: HttpRequest, host: str, target: str, call: Call, answer: Answer) -> None:
        limits = self._settings.limits
        cause = self._in_flight.cause(request.header("traceparent"), needed=call.acts)
        message_id = new_message_id()
        authorization = await self._authority.authorize(Leaving(target, call, cause, message_id))
        body = call.document
        parcel = Carried(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=dict(request.headers),
            body=body,
            begin_by=int((self._now() + limits.begin) * 1000),
            authorization=authorization,
            cause=cause,
        )
        repeatable = _repeatable(self._settings.known(target), call)
        relay = Relay(answer, call, host)
        try:
            try:
                chunks = self._ask(
                    target,
                    call.message_type,
                    parcel.model_dump(exclude_defaults=True),
                    message_id=message_id,
                    timeout=limits.stream,
                    # Later it is not begun any more. What never left is known by then; by silence it is not.
                    accepted_within=limits.answer if repeatable else limits.begin,
                )
                async with aclosing(self._parts(chunks, target, call)) as parts:
                    await relay.pass_on(parts, message_id)
            except MasError as error:
                raise told(error, message_id) from None
        except Refusal as refusal:
            if answer.begun:
                await relay.say(refusal)
            raise

    async def _parts(self, chunks: Stream, target: str, call: Call) -> AsyncGenerator[Part | str, None]:
        """The parts of the answer; a sidecar that is silent for too long is taken for dead."""
        limits = self._settings.limits
        application = self._settings.known(target)
        patient = bool(namespace_of(target)) or _repeatable(application, call)
        wait = limits.answer if patient else limits.begin
        quiet = limits.answer if patient else _MISSED * limits.heartbeat
        async with aclosing(parts_of(chunks)) as unfolded:
            while True:
                try:
                    async with asyncio.timeout(wait + _GRACE):
                        chunk = await anext(unfolded, None)
                except TimeoutError:
                    raise RequestTimeout(f"the sidecar of {target} was silent for {wait:g} s") from None
                if chunk is None:
                    return
                wait = quiet
                yield chunk


def _plain(host: str) -> str:
    """A host without the port that plain HTTP has anyway."""
    name, colon, port = host.rpartition(":")
    return name if colon and port == "80" else host


def _repeatable(application: Application | None, call: Call) -> bool:
    return application is not None and call.operation in application.idempotent


def _shape(received: Received) -> tuple[Shape, str | int | None]:
    """How to tell whoever sent this that it is refused, before it is known what it is.

    The id is that of a request: nothing else is answered.
    """
    try:
        document = strict_json.parse(received.body)
    except NotStrict:
        return Shape.PLAIN, None
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        return Shape.PLAIN, None
    request_id = document.get("id")
    known = isinstance(request_id, str | int) and not isinstance(request_id, bool)
    asks = received.method == "POST" and "method" in document
    return Shape.MCP, request_id if known and asks else None
