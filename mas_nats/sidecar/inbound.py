"""Calls that come: judged anew, then handed to the application at most once."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import orjson

from mas_nats.errors import OutcomeUnknown, Refused, Reject, StreamCancelled, Unavailable
from mas_nats.message import AgentMessage, ReplyWriter
from mas_nats.sidecar import card, carriage, strict_json
from mas_nats.sidecar.application import Settings
from mas_nats.sidecar.authority import Authority
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.carriage import Carried, Head, Part
from mas_nats.sidecar.decision import decide
from mas_nats.sidecar.events import BrokenStream, EventReader
from mas_nats.sidecar.http_message import A2A_JSON, EVENTS, JSON, RESPONSE_HEADERS, HttpRequest, media_type
from mas_nats.sidecar.in_flight import InFlight, new_traceparent, trace_of
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, TOO_LARGE, UNAVAILABLE, Refusal
from mas_nats.sidecar.sessions import Sessions
from mas_nats.sidecar.strict_json import NotStrict
from mas_nats.wire.frames import FRAME_BYTES

logger = logging.getLogger("mas_nats")

_FIRST_SIGN = 1.0
"""Seconds until the caller hears that its call is being run, where there is no answer yet."""
_CONNECT_TIMEOUT = 5.0
_TOGETHER = 0.02
"""Seconds that the head of a stream waits for its first event, to be one frame with it."""
_PLAIN_BYTES = 64 << 10
"""Bytes of a plain text (an error page) that are carried."""
_PIECE = 64 << 10
"""Characters of a large body that are written at once."""
_REMEMBERED = 100_000
"""Ids of calls that were handed over: none is twice, even where the broker has lost an acknowledgement."""

_ALIVE = Part(alive=True).payload()

T = TypeVar("T")


class _Broken(Exception):
    """The application's answer broke off after a part of it was sent. Holds nothing of its content."""


class Inbound:
    """Hands calls to the application and its answers to whoever called."""

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        in_flight: InFlight,
        *,
        now: Callable[[], float],
        max_payload: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._in_flight = in_flight
        self._now = now  # unix time, in seconds
        self._max_payload = max_payload  # bytes of one message
        self._sessions = Sessions()
        self._standing = 0
        self._begun: OrderedDict[str, None] = OrderedDict()
        self._leaving = asyncio.Event()
        base = settings.own.base_url
        self._authorities = {urlsplit(base).netloc.lower(), *settings.own.hosts}
        # A connection for each call: on one that was kept, an application that closes it meanwhile would
        # leave it open whether the call was read. And no proxy from the environment.
        self._client = httpx2.AsyncClient(
            base_url=base,
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT),
        )

    def leave(self) -> None:
        """End standing streams: whoever reads them opens them anew, at another instance or later."""
        self._leaving.set()

    async def close(self) -> None:
        """Close what is open to the application."""
        await self._client.aclose()

    async def handle(self, message: AgentMessage) -> None:
        """Run a call.

        Raises:
            Reject: nobody waits for its answer: no caller's sidecar sends that.

        """
        if not message.expects_reply:
            raise Reject("a sidecar takes calls that are requested, not messages that are sent")
        try:
            carried, call = await self._judge(message)
            await self._begin(message, call, carried)
        except Refusal as refusal:
            await self._refuse(message, refusal)
            return
        except (Unavailable, OutcomeUnknown) as error:
            # Not run, and not answered: the caller learns by its own limit that nothing is known.
            logger.warning("call %s was left: %s", message.message_id, error)
            return
        try:
            await self._run(message, call, carried)
        except Refusal as refusal:
            await self._refuse(message, refusal)
        except Refused as error:
            text = f"the answer was refused ({error.decision}, {error.verdict.rule}): {error.verdict.reason}"
            refused = Refusal("answer_refused", text, error.verdict.fix, 502, OUTCOME_UNKNOWN, ran="yes")
            await self._refuse(message, refused)
        except _Broken as error:
            logger.warning("call %s: %s", message.message_id, error)

    # -- before it is run --------------------------------------------------------------------------
    async def _judge(self, message: AgentMessage) -> tuple[Carried, Call]:
        """What the call is, looked at as if nobody had looked before."""
        carried = Carried.read(message.data)
        body = b"" if carried.body is None else orjson.dumps(carried.body)
        request = HttpRequest(carried.method, carried.path, carried.query, carried.headers, body)
        call = decide(request, caller=self._settings.known(message.sender), target=self._settings.own)
        if message.message_type != call.message_type:
            text = "the type of the message is not that of the call in it"
            raise Refusal("message_type", text, shape=call.shape, request_id=call.request_id)
        if session := request.header("mcp-session-id"):
            self._sessions.require(session, message.sender, call.request_id)
        authorization = await self._authority.accept(call, message, carried.authorization)
        return carried.model_copy(update={"authorization": authorization}), call

    async def _begin(self, message: AgentMessage, call: Call, carried: Carried) -> None:
        """Make sure that a call is run at most once, and not too late."""
        if call.operation in self._settings.own.idempotent:
            return
        self._require_in_time(message, carried)
        if call.standing and self._standing >= self._settings.limits.standing:
            raise Refusal(
                "standing", "too many streams are open", "Close one", 503, UNAVAILABLE, retry_after=10
            )
        await message.acknowledge()
        self._require_in_time(message, carried)
        key = f"{message.sender}\n{message.message_id}"
        if key in self._begun:
            raise Refusal("again", "this call was run before", "", 504, OUTCOME_UNKNOWN, ran="unknown")
        self._begun[key] = None
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)

    def _require_in_time(self, message: AgentMessage, carried: Carried) -> None:
        """Look at the caller's limit, and at one's own since the policy service took the call."""
        latest = message.sent_at.timestamp() + self._settings.limits.begin
        if self._now() > min(carried.begin_by / 1000, latest):
            text = "the call came too late, and was not run"
            raise Refusal("expired", text, "Call again", 504, UNAVAILABLE)

    async def _refuse(self, message: AgentMessage, refusal: Refusal) -> None:
        """Tell the caller; the type of the reply has the rule, so that the audit has it."""
        logger.warning("call %s from %s: %s", message.message_id, message.sender, refusal)
        part = Part(refused=carriage.Refused.of(refusal))
        try:
            await message.reply(f"refused:{refusal.rule}", part.payload())
        except Refused as error:
            logger.info("call %s: the refusal was not delivered: %s", message.message_id, error.decision)

    # -- running it --------------------------------------------------------------------------------
    async def _run(self, message: AgentMessage, call: Call, carried: Carried) -> None:
        headers = dict(carried.headers)
        if carried.authorization:
            headers["authorization"] = carried.authorization
        if not trace_of(headers.get("traceparent", "")):
            headers["traceparent"] = new_traceparent()
        headers |= {"accept-encoding": "identity", "user-agent": "mas-sidecar"}
        request = self._client.build_request(
            carried.method,
            carried.path + (f"?{carried.query}" if carried.query else ""),
            headers=headers,
            content=None if carried.body is None else orjson.dumps(carried.body),
        )
        self._standing += call.standing
        try:
            async with message.reply_stream(call.message_type) as out:
                if call.causes:
                    with self._in_flight.working_on(message.message_id, headers["traceparent"]):
                        await self._exchange(request, call, message, out)
                else:
                    await self._exchange(request, call, message, out)
        except StreamCancelled:
            logger.info("call %s: its caller has left", message.message_id)
        finally:
            self._standing -= call.standing

    async def _exchange(
        self, request: httpx2.Request, call: Call, message: AgentMessage, out: ReplyWriter
    ) -> None:
        leaving = self._leaving if call.standing else asyncio.Event()
        alive = _SignsOfLife(out, self._settings.limits.heartbeat, leaving)
        try:
            await self._answered(request, call, message, alive, out)
        except Refusal as refusal:
            if not alive.said:
                raise
            # The answer has begun: this is its end.
            logger.warning("call %s from %s: %s", message.message_id, message.sender, refusal)
            await out.write(Part(refused=carriage.Refused.of(refusal)).payload())

    async def _answered(
        self,
        request: httpx2.Request,
        call: Call,
        message: AgentMessage,
        alive: _SignsOfLife,
        out: ReplyWriter,
    ) -> None:
        async with self._sent(request, alive) as answer:
            head = self._head(answer)
            session = answer.headers.get("mcp-session-id")
            if session and call.operation == "initialize":
                self._sessions.opened(session, message.sender)
            if call.operation == "session.end" and answer.is_success:
                self._sessions.ended(request.headers["mcp-session-id"])
            if media_type(head.headers.get("content-type", "")) == EVENTS:
                await self._events(answer, head, alive, out)
                return
            parts = await self._whole(answer, head, call, alive)
        # Only now, with nothing to wait for any more: a short answer is one frame, and that is its last.
        for part in parts:
            await out.write(part)

    @asynccontextmanager
    async def _sent(self, request: httpx2.Request, alive: _SignsOfLife) -> AsyncIterator[httpx2.Response]:
        """Send a request; its answer, which is closed at the end, so that the application notices."""
        limit = self._settings.limits.answer
        try:
            async with asyncio.timeout(limit):
                answer = await alive.during(self._client.send(request, stream=True))
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            text = "the application does not listen; the call was not run"
            raise Refusal("application_away", text, "Start it", 502, UNAVAILABLE) from None
        except httpx2.HTTPError as error:
            raise _unknown(f"the application gave no answer ({type(error).__name__})") from None
        except TimeoutError:
            raise _unknown(f"the application did not answer within {limit:g} s", 504) from None
        try:
            yield answer
        finally:
            await answer.aclose()

    def _head(self, answer: httpx2.Response) -> Head:
        if answer.status_code < 200 or (300 <= answer.status_code < 400 and answer.status_code != 304):
            raise _unknown("the application answered with a redirect, which nobody could follow")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _unknown("the application compressed its answer, though it was asked not to")
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name in RESPONSE_HEADERS and len(value) < 2048
        }
        return Head(status=answer.status_code, headers=kept)

    async def _whole(
        self, answer: httpx2.Response, head: Head, call: Call, alive: _SignsOfLife
    ) -> list[str | dict[str, Any]]:
        """An answer that is no stream: as JSON where it is one, small error pages as text."""
        kind = media_type(head.headers.get("content-type", ""))
        if kind not in {JSON, A2A_JSON}:
            return await self._text(answer, head, kind, alive)
        begin = Part(head=head).payload()
        raw = await self._read(answer, alive, self._settings.limits.response_bytes)
        if not raw:
            return [begin]
        try:
            document = self._homed(strict_json.parse(raw), call)
        except NotStrict as error:
            raise _unknown(f"the application's answer cannot be taken: {error}") from None
        except card.NoWay:
            raise _unknown("the agent card names no address of this application") from None
        written = orjson.dumps(document)
        if len(written) + 2 * FRAME_BYTES <= self._max_payload():
            return [begin, Part(json=[document]).payload()]
        text = written.decode()
        return [begin, *(text[start : start + _PIECE] for start in range(0, len(text), _PIECE))]

    async def _text(
        self, answer: httpx2.Response, head: Head, kind: str, alive: _SignsOfLife
    ) -> list[str | dict[str, Any]]:
        text = ""
        if kind == "text/plain":
            text = (await self._read(answer, alive, _PLAIN_BYTES)).decode(errors="replace")
        else:  # nothing that MCP or A2A has: the status is what counts
            head = head.model_copy(
                update={"headers": {k: v for k, v in head.headers.items() if k != "content-type"}}
            )
        return [Part(head=head).payload(), *([text] if text else [])]

    def _homed(self, document: Any, call: Call) -> Any:
        """An agent card with paths that lead here; anything else as it is."""
        if not call.card or not isinstance(document, dict):
            return document
        if "jsonrpc" not in document:
            return card.leading_home(document, self._authorities)
        if isinstance(document.get("result"), dict):
            return {**document, "result": card.leading_home(document["result"], self._authorities)}
        return document

    async def _read(self, answer: httpx2.Response, alive: _SignsOfLife, most: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for part in alive.through(answer.aiter_raw()):
                size += len(part)
                if size > most:
                    text = f"the application's answer has more than {most} bytes"
                    raise Refusal("response_bytes", text, "Ask for less", 502, TOO_LARGE, ran="yes")
                parts.append(part)
        except httpx2.HTTPError as error:
            raise _unknown(f"the application's answer broke off ({type(error).__name__})") from None
        return b"".join(parts)

    async def _events(
        self, answer: httpx2.Response, head: Head, alive: _SignsOfLife, out: ReplyWriter
    ) -> None:
        reader = EventReader(self._max_payload() - 2 * FRAME_BYTES)
        raw = answer.aiter_raw()
        first = asyncio.ensure_future(_following(raw))
        try:
            await asyncio.wait({first}, timeout=_TOGETHER)
            early = first.done()
            events = reader.feed(first.result() or b"") if early else []
            await out.write(Part(head=head).payload())
            if not early:
                begun = await alive.during(first)
                events = reader.feed(begun or b"")
            for event in events:
                await out.write(Part(event=event).payload())
            async for part in alive.through(raw):
                for event in reader.feed(part):
                    await out.write(Part(event=event).payload())
        except (httpx2.HTTPError, BrokenStream) as error:
            why = str(error) if isinstance(error, BrokenStream) else type(error).__name__
            raise _Broken(f"the application's stream broke off: {why}") from None
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)


class _SignsOfLife:
    """Lets the caller know, while the application is silent, that its call is being run."""

    def __init__(self, out: ReplyWriter, every: float, leaving: asyncio.Event) -> None:
        self._out = out
        self._leaving = leaving
        self._every = every
        self._next = min(_FIRST_SIGN, every)
        self.said = False

    async def during(self, work: Awaitable[T]) -> T:
        """Wait for ``work``.

        Raises:
            _Broken: the sidecar stops.

        """
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            while not task.done():
                first = asyncio.FIRST_COMPLETED
                done, _ = await asyncio.wait({task, leaving}, timeout=self._next, return_when=first)
                if leaving in done and task not in done:
                    raise _Broken("the sidecar stops")
                if not done:
                    self._next, self.said = self._every, True
                    await self._out.write(_ALIVE)
            return task.result()
        finally:
            leaving.cancel()
            task.cancel()
            await asyncio.gather(leaving, task, return_exceptions=True)

    async def through(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Go through ``parts``."""
        while (part := await self.during(_following(parts))) is not None:
            yield part


async def _following(parts: AsyncIterator[bytes]) -> bytes | None:
    return await anext(parts, None)


def _unknown(text: str, status: int = 502) -> Refusal:
    return Refusal(
        "outcome_unknown",
        f"{text}: whether the call was run is not known",
        "Look at what it would have changed before calling again",
        status,
        OUTCOME_UNKNOWN,
        ran="unknown",
    )
