"""An answer on its last way: from parts to HTTP. Nothing of what the other side says is taken on trust."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
from pydantic import ValidationError

from mas_nats.sidecar import card, events
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.carriage import Event, Head, Part, is_long
from mas_nats.sidecar.http_message import EVENTS, RESPONSE_HEADERS, VALUE, HttpResponse
from mas_nats.sidecar.listener import Answer
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, Refusal, Shape, response
from mas_nats.stream import Stream
from mas_nats.wire.frames import Chunk


async def parts_of(chunks: Stream) -> AsyncGenerator[Part | str, None]:
    """The parts in a reply: in chunks as they were written, or gathered in one object."""
    async with chunks:
        async for chunk in chunks:
            for each in _each(chunk):
                yield each if isinstance(each, str) else _part(each)


def _each(chunk: Chunk) -> list[Chunk]:
    if isinstance(chunk, dict) and chunk.keys() == {"chunks"} and isinstance(chunk["chunks"], list):
        return chunk["chunks"]
    return [chunk]


def _part(chunk: Any) -> Part:
    try:
        return Part.model_validate({} if is_long(chunk) else chunk)
    except ValidationError:
        text = "the other sidecar sent something that is no part of an answer"
        raise Refusal(
            "carriage", text, "Run sidecars of one version", 502, OUTCOME_UNKNOWN, ran="unknown"
        ) from None


class Relay:
    """Writes the parts of an answer to the application."""

    def __init__(self, answer: Answer, call: Call, host: str) -> None:
        self._answer = answer
        self._call = call
        self._host = host
        self._head: Head | None = None
        self._answered = False  # the application has what its call was answered
        self._resumable = False  # and may ask for the rest where the stream breaks off

    async def pass_on(self, parts: AsyncIterator[Part | str], message_id: str) -> None:
        """All of them.

        Raises:
            Refusal: the other sidecar refused the call, or the answer makes no sense.

        """
        done = False
        async for part in parts:
            if isinstance(part, Part) and part.refused is not None:
                raise part.refused.refusal(self._call.shape, self._call.request_id, message_id)
            if isinstance(part, Part) and part.head is not None and self._head is None:
                await self._begin(_allowed(part.head))
            elif isinstance(part, Part) and part.alive is not None:
                await self._still_there()
            elif self._head is None or done:
                raise self._nonsense()
            else:
                done = await self._body(part, self._head)
        if self._head is None:
            raise self._nonsense()
        if done:
            return
        if self._answer.begun:
            await self._answer.end()
        else:
            await self._answer.whole(HttpResponse(self._head.status, self._head.headers))

    async def say(self, refusal: Refusal) -> None:
        """End a stream that has begun with its protocol's error, so that nobody waits for the rest.

        Where the application may ask for the rest and could get it, it is left to do so.
        """
        call = self._call
        rpc = call.shape in {Shape.MCP, Shape.A2A_RPC} and call.request_id is not None
        if not (rpc and self._streams) or self._answered or (self._resumable and refusal.ran == "unknown"):
            return
        error = response(refusal.to(call.shape, call.request_id))
        await self._answer.write(events.write(Event(data=orjson.loads(error.body))))

    @property
    def _streams(self) -> bool:
        return (
            self._answer.begun
            and self._head is not None
            and EVENTS in self._head.headers.get("content-type", "")
        )

    async def _begin(self, head: Head) -> None:
        self._head = head
        if head.headers.get("content-type", "").startswith(EVENTS):
            await self._answer.begin(head.status, {**head.headers, "cache-control": "no-cache, no-transform"})

    async def _still_there(self) -> None:
        if self._streams:
            await self._answer.write(events.ALIVE)

    async def _body(self, part: Part | str, head: Head) -> bool:
        """Write a part of the body; whether that was all of it."""
        if isinstance(part, Part) and part.whole is not None and not self._answer.begun:
            body = orjson.dumps(self._reachable(part.whole[0]))
            await self._answer.whole(HttpResponse(head.status, head.headers, body))
            return True
        if isinstance(part, Part) and part.event is not None and self._answer.begun:
            await self._answer.write(events.write(part.event))
            self._note(part.event)
            return False
        if not isinstance(part, str):
            raise self._nonsense()
        if not self._answer.begun:
            await self._answer.begin(head.status, head.headers)
        await self._answer.write(part.encode())
        return False

    def _note(self, event: Event) -> None:
        self._resumable |= bool(event.id)
        data = event.data if isinstance(event.data, dict) else {}
        ends = bool({"result", "error"} & data.keys()) and self._call.shape is Shape.MCP
        self._answered |= ends and data.get("id") == self._call.request_id

    def _reachable(self, document: Any) -> Any:
        if not self._call.card or not isinstance(document, dict):
            return document
        if "jsonrpc" not in document:
            return card.reachable(document, self._host)
        if isinstance(document.get("result"), dict):
            return {**document, "result": card.reachable(document["result"], self._host)}
        return document

    def _nonsense(self) -> Refusal:
        return Refusal(
            "carriage", "the other sidecar's answer makes no sense", "", 502, OUTCOME_UNKNOWN, ran="unknown"
        )


def _allowed(head: Head) -> Head:
    """What of a head may be said here, whoever said it there."""
    fields = head.headers.items()
    kept = {name: value for name, value in fields if name in RESPONSE_HEADERS and VALUE.fullmatch(value)}
    return head.model_copy(update={"headers": kept})
