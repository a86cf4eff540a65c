"""The way to a language model, and back: its answer is handed over once what it selects is recorded.

    application --HTTP--> outbound -> policy (search, audit) --HTTPS--> llm_host
                <- held until recorded <- selections <- policy (search, audit) <-

The application's credentials go to ``llm_host`` and nowhere else: no message, log or error holds them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2
import orjson

from mas_nats.errors import MasError, OutcomeUnknown
from mas_nats.sidecar import events, llm_api, strict_json
from mas_nats.sidecar.application import Settings
from mas_nats.sidecar.events import BlockReader, BrokenStream
from mas_nats.sidecar.http_message import EVENTS, JSON, HttpRequest, HttpResponse, media_type
from mas_nats.sidecar.llm import Selections
from mas_nats.sidecar.llm_api import Asked
from mas_nats.sidecar.llm_events import DONE, Events, LlmEvent
from mas_nats.sidecar.llm_search import Object, Said, Search, Searching, nonsense
from mas_nats.sidecar.no_cookies import no_cookies
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, REFUSED, TOO_LARGE, UNAVAILABLE, Refusal
from mas_nats.sidecar.selection import Answer, TooMany
from mas_nats.sidecar.strict_json import NotStrict
from mas_nats.sidecar.told import told
from mas_nats.wire.correlation import new_message_id

logger = logging.getLogger("mas_nats")

_CONNECT_TIMEOUT = 10.0
_ERROR_BYTES = 64 << 10
"""Bytes of an answer that is an error."""
_EVENT_BYTES = 4 << 20
"""Bytes of one event: the last of a response holds all of it."""
_FIRST_ERROR = 400
_WINDOW_BYTES = 16 << 10
"""Bytes, about, of a stream that are searched at once."""
_PACE = 0.05
"""Seconds from one search of a stream to the next: what comes meanwhile is searched together."""
_NAME = re.compile(r"[a-z_.]{1,64}")


@dataclass(frozen=True, slots=True)
class Asking:
    """What is about to leave for the language model at ``host``.

    ``body`` has its path, query and headers (but for the application's key), and its body where it has one.
    """

    message_id: str
    host: str
    operation: str
    body: Mapping[str, Any] = field(repr=False)
    traceparent: str = ""


class Ask(Protocol):
    """Asks policy whether something may leave for a language model."""

    async def __call__(self, asking: Asking) -> Any:
        """The body that may leave, redacted where policy says so.

        Raises:
            MasError: it may not, or nobody could be asked; nothing leaves.

        """


class LlmHost:
    """Carries requests to the language model of ``settings``. ``now``: seconds of a clock that only rises."""

    def __init__(
        self,
        settings: Settings,
        ask: Ask,
        search: Search,
        selections: Selections,
        *,
        now: Callable[[], float],
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = settings.limits
        self._host = settings.llm_host
        self._names = settings.own.tool_names
        self._ask = ask
        self._search = search
        self._selections = selections
        self._now = now
        self._client = httpx2.AsyncClient(
            base_url=settings.llm_url,
            cookies=no_cookies(),
            verify=verify or ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=settings.limits.connections),
        )

    async def close(self) -> None:
        """Close what is open to it."""
        await self._client.aclose()

    async def carry(self, request: HttpRequest, cause: str) -> AsyncGenerator[HttpResponse | bytes, None]:
        """See ``LlmPassage``."""
        asked = llm_api.read(request)
        if cause and asked.interface is not None:
            await self._may_ask(cause)
        message_id = new_message_id()
        document = await self._allowed(asked, request, message_id)
        end = self._now() + self._limits.stream
        answer = await self._sent(request, document, end)
        try:
            searching = Searching(self._search, Said(message_id, self._host, asked.operation, ()))
            async with aclosing(self._answered(asked, answer, searching, cause, end)) as parts:
                async for part in parts:
                    yield part
        finally:
            await answer.aclose()

    async def _may_ask(self, cause: str) -> None:
        try:
            await self._selections.may_ask(cause)
        except MasError as error:
            raise told(error, "") from None

    async def _allowed(self, asked: Asked, request: HttpRequest, message_id: str) -> dict[str, Any] | None:
        """What may leave of the document.

        Raises:
            Refusal: nothing may.

        """
        beside = llm_api.shown(request)
        body = beside if asked.document is None else {**beside, "body": asked.document}
        trace = request.header("traceparent")
        try:
            allowed = await self._ask(Asking(message_id, self._host, asked.operation, body, trace))
        except OutcomeUnknown:
            text = "policy did not answer, so nothing left"
            raise Refusal("unavailable", text, "", 503, UNAVAILABLE, retry_after=1) from None
        except MasError as error:
            raise told(error, message_id) from None
        document: dict[str, Any] | None = allowed.get("body") if isinstance(allowed, dict) else None
        if not isinstance(allowed, dict) or isinstance(document, dict) is (asked.document is None):
            raise Refusal("carriage", "what policy lets pass is no request any more", "", 502, UNAVAILABLE)
        if {name: value for name, value in allowed.items() if name != "body"} != beside:
            text = "policy redacts something in the path, the query or a header, and these leave as they are"
            fix = "Put nothing but names into them"
            raise Refusal("llm_header", text, fix, 403, REFUSED, message_id=message_id)
        return document

    async def _sent(
        self, request: HttpRequest, document: dict[str, Any] | None, end: float
    ) -> httpx2.Response:
        fields = {name: value for name, value in request.headers.items() if name != "traceparent"}
        outgoing = self._client.build_request(
            request.method,
            request.path + (f"?{request.query}" if request.query else ""),
            headers=fields | {"accept-encoding": "identity", "user-agent": "mas-sidecar"},
            content=None if document is None else orjson.dumps(document),
        )
        try:
            async with asyncio.timeout(self._patience(end)):
                return await self._client.send(outgoing, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise Refusal("llm_away", "the language model cannot be reached", "", 502, UNAVAILABLE) from None
        except httpx2.HTTPError as error:
            raise _lost(f"the language model gave no answer ({type(error).__name__})") from None
        except TimeoutError:
            raise _lost("the language model did not answer in time", 504) from None

    def _patience(self, end: float) -> float:
        """Seconds for which the next sign of the language model is waited for."""
        return max(0.0, min(self._limits.answer, end - self._now()))

    # -- its answer --------------------------------------------------------------------------------
    async def _answered(
        self, asked: Asked, answer: httpx2.Response, searching: Searching, cause: str, end: float
    ) -> AsyncGenerator[HttpResponse | bytes, None]:
        kind = media_type(answer.headers.get("content-type", ""))
        failed = answer.status_code >= _FIRST_ERROR
        if not failed and answer.status_code >= 300:
            raise _lost("the language model answered with a redirect, which is not followed")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _lost("the language model compressed its answer, though it was asked not to")
        kept = {name: value for name, value in answer.headers.items() if llm_api.answered(name, value)}
        head = HttpResponse(answer.status_code, kept)
        raw = self._raw(answer, end)
        if failed:
            body = await self._error(raw, searching)
            yield head
            yield body
        elif kind == EVENTS and asked.interface is not None:
            yield head
            selected = Answer(asked.interface, self._names)
            try:
                async with aclosing(
                    self._held(raw, Events(asked.interface), selected, searching, cause)
                ) as parts:
                    async for part in parts:
                        yield part
            except Refusal as refusal:
                yield llm_api.error_event(asked.interface, refusal)
                raise
        elif kind == JSON:
            body = await self._whole(asked, raw, searching, cause)
            yield head
            yield body
        else:
            raise _lost("the language model's answer is neither JSON nor a stream of events")

    async def _raw(self, answer: httpx2.Response, end: float) -> AsyncGenerator[bytes, None]:
        """The body as it comes.

        Raises:
            Refusal: it broke off, or nothing came for too long.

        """
        parts = answer.aiter_raw()
        while True:
            try:
                async with asyncio.timeout(self._patience(end)):
                    part = await anext(parts, None)
            except httpx2.HTTPError as error:
                raise _lost(f"the language model's answer broke off ({type(error).__name__})") from None
            except TimeoutError:
                raise _lost("the language model was silent for too long", 504) from None
            if part is None:
                return
            yield part

    async def _error(self, raw: AsyncIterator[bytes], searching: Searching) -> bytes:
        """An answer that says what went wrong; a text where it is no JSON."""
        body = await _all(raw, _ERROR_BYTES)
        try:
            return orjson.dumps(await searching.whole(strict_json.parse(body)))
        except NotStrict:
            return str(await searching.whole(body.decode(errors="replace"))).encode()

    async def _whole(
        self, asked: Asked, raw: AsyncIterator[bytes], searching: Searching, cause: str
    ) -> bytes:
        body = await _all(raw, self._limits.response_bytes)
        document = await searching.whole(_strict(body, "the answer"))
        if asked.interface is not None:
            selected = Answer(asked.interface, self._names)
            try:
                tools = selected.whole(document)
            except TooMany:
                raise _many() from None
            await self._record(selected, tools, cause)
        return orjson.dumps(document)

    async def _held(
        self, raw: AsyncIterator[bytes], stream: Events, answer: Answer, searching: Searching, cause: str
    ) -> AsyncGenerator[bytes, None]:
        """Events as they come, once they were searched; one that completes a call waits for its record.

        That a whole stream selected nothing is recorded at its end.
        """
        most = min(_EVENT_BYTES, self._limits.response_bytes)
        reader, selected = BlockReader(most), False
        async with aclosing(self._searched(raw, stream, reader, searching)) as gone:
            async for events_ in gone:
                ready = bytearray()
                for event in events_:
                    if tools := _completed(answer, event):
                        if ready:
                            yield bytes(ready)
                            ready.clear()
                        selected = True
                        await self._record(answer, tools, cause)
                    ready += event.written()
                if ready:
                    yield bytes(ready)
        if not selected:
            await self._record(answer, (), cause)

    async def _searched(
        self, raw: AsyncIterator[bytes], stream: Events, reader: BlockReader, searching: Searching
    ) -> AsyncGenerator[list[LlmEvent], None]:
        """The events that may be handed over, as policy lets them pass."""
        next_ = 0.0
        async for part in raw:
            for lines in _fed(reader, part):
                stream.take(_event(lines))
            if stream.held > self._limits.response_bytes:
                raise _lost("the language model's stream has too much that waits for its end")
            ended = stream.ended
            if (chunks := stream.shown()) or ended:
                await asyncio.sleep(max(0.0, next_ - self._now()))
                next_ = self._now() + _PACE
                await _search(searching, stream, chunks, final=ended)
            if gone := list(stream.gone()):
                yield gone
        if not stream.ended:
            stream.end()
            await _search(searching, stream, stream.shown(), final=True)
            if gone := list(stream.gone()):
                yield gone
        if stream.waits:
            raise nonsense()

    async def _record(self, answer: Answer, tools: Sequence[str], cause: str) -> None:
        """Have selections recorded.

        Raises:
            Refusal: that could not be done.

        """
        if answer.counted.doubtful:
            logger.warning("calls of the language model that do not count: %d", answer.counted.doubtful)
            answer.counted.doubtful = 0
        if not cause:
            return
        try:
            await self._selections.selected(cause, tools)
        except MasError as error:
            text = f"what the language model selected could not be recorded: {error}"
            raise Refusal("llm_selection", text, "", 503, UNAVAILABLE, ran="yes", retry_after=1) from None


def _fed(reader: BlockReader, part: bytes) -> list[list[bytes]]:
    try:
        return reader.feed(part)
    except BrokenStream as error:
        raise _lost(f"the language model's stream cannot be read: {error}") from None


async def _search(searching: Searching, stream: Events, chunks: Sequence[Object], *, final: bool) -> None:
    """Have ``chunks`` searched, so many at once as are small together."""
    if final and not (chunks or stream.waits):
        return
    window: list[Object] = []
    size = 0
    for chunk in chunks:
        length = len(orjson.dumps(chunk))
        if window and size + length > _WINDOW_BYTES:
            stream.passed(await searching.part(window, final=False))
            window, size = [], 0
        window.append(chunk)
        size += length
    stream.passed(await searching.part(window, final=final))


def _event(lines: list[bytes]) -> LlmEvent:
    """The event that lines are, without what is not used."""
    try:
        said = events.fields(lines)
    except BrokenStream as error:
        raise _lost(f"the language model's stream cannot be read: {error}") from None
    text = said.get("data", "").strip()
    size = sum(map(len, lines))
    if not text:
        return LlmEvent(size=size)
    name = said.get("event", "")
    data = DONE if text == DONE else _strict(text, "the data of an event")
    return LlmEvent(name if _NAME.fullmatch(name) else "", data, size)


def _completed(answer: Answer, event: LlmEvent) -> list[str]:
    """The tools whose calls an event completes."""
    try:
        return answer.event(event.data)
    except TooMany:
        raise _many() from None


def _strict(text: bytes | str, what: str) -> Any:
    try:
        return strict_json.parse(text)
    except NotStrict as error:
        raise _lost(f"{what} of the language model cannot be taken: {error}") from None


async def _all(raw: AsyncIterator[bytes], most: int) -> bytes:
    found = bytearray()
    async for part in raw:
        found += part
        if len(found) > most:
            text = f"the language model's answer has more than {most} bytes"
            raise Refusal("response_bytes", text, "Ask for less", 502, TOO_LARGE, ran="yes")
    return bytes(found)


def _many() -> Refusal:
    return _lost("the language model's answer has too many calls")


def _lost(text: str, status: int = 502) -> Refusal:
    return Refusal("llm_answer", text, "", status, OUTCOME_UNKNOWN, ran="unknown")
