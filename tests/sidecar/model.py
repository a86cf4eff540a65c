"""A language model that says what a test wants, in OpenAI's chat format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that it got."""

    headers: dict[str, str]
    body: bytes


def body_of(asked: Asked) -> Any:
    """The JSON of a request."""
    return orjson.loads(asked.body)


class Model:
    """``calls``: the tools that it selects. ``paced``: waited for between the first event and the others."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.asked: list[Asked] = []
        self.paced: asyncio.Event | None = None

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(Asked(dict(request.headers), body))
        if orjson.loads(body).get("stream"):
            return StreamingResponse(self._streamed(), media_type="text/event-stream")
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
            for number, name in enumerate(self.calls)
        ]
        message = {"role": "assistant", "content": None if calls else "well", "tool_calls": calls}
        why = "tool_calls" if calls else "stop"
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": why}]})

    async def _streamed(self) -> AsyncIterator[bytes]:
        yield _event({"content": "let me see"})
        if self.paced is not None:
            await self.paced.wait()
        for index, name in enumerate(self.calls):
            call = {"index": index, "id": f"call_{index}", "function": {"name": name, "arguments": ""}}
            yield _event({"tool_calls": [call]})
            yield _event({"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]})
        yield _event({}, "tool_calls" if self.calls else "stop")
        yield b"data: [DONE]\n\n"


def _event(delta: dict[str, Any], why: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": why}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
