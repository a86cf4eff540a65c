"""One call to the application, and its answer as the parts that travel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson

from mas_nats.message import ReplyWriter
from mas_nats.sidecar import card, strict_json
from mas_nats.sidecar.application import Application, Limits
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.carriage import Carried, Event, Head, Part
from mas_nats.sidecar.events import BrokenStream, EventReader, TooLarge
from mas_nats.sidecar.http_message import A2A_JSON, EVENTS, JSON, RESPONSE_HEADERS, media_type
from mas_nats.sidecar.no_cookies import no_cookies
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, TOO_LARGE, UNAVAILABLE, Refusal
from mas_nats.sidecar.signs_of_life import Broken, SignsOfLife, following
from mas_nats.sidecar.strict_json import NotStrict
from mas_nats.wire.frames import FRAME_BYTES

_CONNECT_TIMEOUT = 5.0
_TOGETHER = 0.02
"""Seconds that the head of a stream waits for its first event, to be one frame with it."""
_PLAIN_BYTES = 64 << 10
"""Bytes of a plain text (an error page) that are carried."""
_PIECE = 64 << 10
"""Characters of a large body that are written at once."""

See = Callable[[Any], Awaitable[Any]]
"""Looks at the JSON of an answer, or of an event, and gives what of it is sent on; or raises ``Stray``."""


class Stray(Exception):
    """What the application says is no answer to the call. Holds nothing of its content."""


class AtApplication:
    """Speaks HTTP with the application. ``max_payload``: bytes of one message."""

    def __init__(self, application: Application, limits: Limits, max_payload: Callable[[], int]) -> None:
        self._limits = limits
        self._max_payload = max_payload
        base = application.base_url
        self._authorities: Collection[str] = {urlsplit(base).netloc.lower(), *application.hosts}
        # A connection for each call: on one that was kept, an application that closes it meanwhile would
        # leave it open whether the call was read. And no proxy from the environment.
        self._client = httpx2.AsyncClient(
            base_url=base,
            cookies=no_cookies(),
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT),
        )

    async def close(self) -> None:
        """Close what is open to the application."""
        await self._client.aclose()

    def request(self, carried: Carried, traceparent: str) -> httpx2.Request:
        """The request that the application gets: written anew from what was judged."""
        headers = dict(carried.headers) | {"traceparent": traceparent}
        if carried.authorization:
            headers["authorization"] = carried.authorization
        headers |= {"accept-encoding": "identity", "user-agent": "mas-sidecar"}
        return self._client.build_request(
            carried.method,
            carried.path + (f"?{carried.query}" if carried.query else ""),
            headers=headers,
            content=None if carried.body is None else orjson.dumps(carried.body),
        )

    @asynccontextmanager
    async def sent(self, request: httpx2.Request, alive: SignsOfLife) -> AsyncIterator[httpx2.Response]:
        """Send a request; its answer, which is closed at the end, so that the application notices."""
        limit = self._limits.answer
        try:
            async with asyncio.timeout(limit):
                answer = await alive.during(self._client.send(request, stream=True))
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            text = "the application does not listen; the call was not run"
            raise Refusal("application_away", text, "Start it", 502, UNAVAILABLE) from None
        except httpx2.HTTPError as error:
            raise unknown(f"the application gave no answer ({type(error).__name__})") from None
        except TimeoutError:
            raise unknown(f"the application did not answer within {limit:g} s", 504) from None
        try:
            yield answer
        finally:
            await answer.aclose()

    def head(self, answer: httpx2.Response) -> Head:
        """What of an answer's head travels.

        Raises:
            Refusal: the answer cannot be carried.

        """
        status = answer.status_code
        if not 200 <= status < 600:
            raise unknown("the application answered with a status that HTTP does not have")
        if 300 <= status < 400 and status != 304:
            raise unknown("the application answered with a redirect, which nobody could follow")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise unknown("the application compressed its answer, though it was asked not to")
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name in RESPONSE_HEADERS and len(value) < 2048
        }
        return Head(status=status, headers=kept)

    async def whole(
        self, answer: httpx2.Response, head: Head, call: Call, alive: SignsOfLife, see: See
    ) -> list[str | dict[str, Any]]:
        """An answer that is no stream: as JSON where it is one, small error pages as text."""
        kind = media_type(head.headers.get("content-type", ""))
        if kind not in {JSON, A2A_JSON}:
            return await self._text(answer, head, kind, alive)
        begin = Part(head=head).payload()
        raw = await self._read(answer, alive, self._limits.response_bytes)
        if not raw:
            return [begin]
        try:
            document = await see(self._homed(strict_json.parse(raw), call))
        except NotStrict as error:
            raise unknown(f"the application's answer cannot be taken: {error}") from None
        except Stray:
            raise unknown("the application's answer is to another call") from None
        except card.NoWay:
            raise unknown("the agent card names no address of this application") from None
        written = orjson.dumps(document)
        if len(written) + 2 * FRAME_BYTES <= self._max_payload():
            return [begin, Part(json=[document]).payload()]
        text = written.decode()
        return [begin, *(text[start : start + _PIECE] for start in range(0, len(text), _PIECE))]

    async def _text(
        self, answer: httpx2.Response, head: Head, kind: str, alive: SignsOfLife
    ) -> list[str | dict[str, Any]]:
        text = ""
        if kind == "text/plain":
            text = (await self._read(answer, alive, _PLAIN_BYTES)).decode(errors="replace")
        else:  # nothing that MCP or A2A has: the status is what counts
            head = head.model_copy(
                update={"headers": {k: v for k, v in head.headers.items() if k != "content-type"}}
            )
        return [Part(head=head).payload(), *([text] if text else [])]

    @staticmethod
    def streams(head: Head) -> bool:
        """Whether the answer is a stream of events."""
        return media_type(head.headers.get("content-type", "")) == EVENTS

    def _homed(self, document: Any, call: Call) -> Any:
        """An agent card with paths that lead here; anything else as it is."""
        if not call.card or not isinstance(document, dict):
            return document
        if "jsonrpc" not in document:
            return card.leading_home(document, self._authorities)
        if isinstance(document.get("result"), dict):
            return {**document, "result": card.leading_home(document["result"], self._authorities)}
        return document

    async def _read(self, answer: httpx2.Response, alive: SignsOfLife, most: int) -> bytes:
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
            raise unknown(f"the application's answer broke off ({type(error).__name__})") from None
        return b"".join(parts)

    async def events(
        self, answer: httpx2.Response, head: Head, alive: SignsOfLife, out: ReplyWriter, see: See
    ) -> None:
        """A stream of events, as they come.

        Raises:
            Broken: it broke off.
            Refusal: an event is too large.

        """
        reader = EventReader(self._max_payload() - 2 * FRAME_BYTES)
        raw = answer.aiter_raw()
        first = asyncio.ensure_future(following(raw))
        try:
            await asyncio.wait({first}, timeout=_TOGETHER)
            early = first.done()
            events = reader.feed(first.result() or b"") if early else []
            await out.write(Part(head=head).payload())
            alive.said = True
            if not early:
                begun = await alive.during(first)
                events = reader.feed(begun or b"")
            for event in events:
                await out.write(await _seen(event, see))
            async for part in alive.through(raw):
                for event in reader.feed(part):
                    await out.write(await _seen(event, see))
        except TooLarge:
            text = f"an event of the answer is larger than one message of {self._max_payload()} bytes"
            raise Refusal("response_bytes", text, "Ask for less", 502, TOO_LARGE, ran="yes") from None
        except (httpx2.HTTPError, BrokenStream) as error:
            why = str(error) if isinstance(error, BrokenStream) else type(error).__name__
            raise Broken(f"the application's stream broke off: {why}") from None
        except Stray:
            raise Broken("the application's stream has an answer to another call") from None
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)


async def _seen(event: Event, see: See) -> dict[str, Any]:
    return Part(event=event.model_copy(update={"data": await see(event.data)})).payload()


def unknown(text: str, status: int = 502) -> Refusal:
    """The refusal of a call that the application may have run."""
    return Refusal(
        "outcome_unknown",
        f"{text}: whether the call was run is not known",
        "Look at what it would have changed before calling again",
        status,
        OUTCOME_UNKNOWN,
        ran="unknown",
    )
