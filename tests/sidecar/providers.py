"""A language model in the three interfaces that the official packages speak, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

ARGUMENTS = '{"number":1}'


class Providers:
    """Selects ``tool`` in every answer. ``asked``: the bodies that it got, ``headers`` theirs."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    def app(self) -> Starlette:
        routes = {"chat/completions": self._chat, "responses": self._responses, "messages": self._messages}
        return Starlette(
            routes=[
                Route(f"/v1/{path}", self._answering(say), methods=["POST"]) for path, say in routes.items()
            ]
        )

    def _answering(self, say: Any) -> Any:
        async def answer(request: Request) -> Response:
            body = orjson.loads(await request.body())
            self.asked.append(body)
            self.headers.append(dict(request.headers))
            whole, events = say(body["model"])
            if body.get("stream"):
                return StreamingResponse(iter(list(events)), media_type="text/event-stream")
            return JSONResponse(whole)

        return answer

    def _chat(self, model: str) -> tuple[Any, Iterator[bytes]]:
        head = {"id": "chatcmpl-1", "created": 1, "model": model}
        call = {"id": "call_1", "type": "function", "function": {"name": self.tool, "arguments": ARGUMENTS}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        whole = {**head, "object": "chat.completion", "choices": [choice]}

        def events() -> Iterator[bytes]:
            first = {**call, "index": 0, "function": {"name": self.tool, "arguments": ""}}
            rest = {"index": 0, "function": {"arguments": ARGUMENTS}}
            for delta, why in (
                ({"role": "assistant", "tool_calls": [first]}, None),
                ({"tool_calls": [rest]}, None),
                ({}, "tool_calls"),
            ):
                said = {"index": 0, "delta": delta, "finish_reason": why}
                yield _event({**head, "object": "chat.completion.chunk", "choices": [said]})
            yield b"data: [DONE]\n\n"

        return whole, events()

    def _responses(self, model: str) -> tuple[Any, Iterator[bytes]]:
        item = {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": self.tool,
            "arguments": ARGUMENTS,
            "status": "completed",
        }
        head = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "tools": []}
        whole = {**head, "status": "completed", "output": [item]}
        place = {"output_index": 0}
        begun = {**item, "arguments": "", "status": "in_progress"}
        said = (
            {"type": "response.created", "response": {**head, "status": "in_progress", "output": []}},
            {"type": "response.output_item.added", **place, "item": begun},
            {
                "type": "response.function_call_arguments.delta",
                **place,
                "item_id": "fc_1",
                "delta": ARGUMENTS,
            },
            {
                "type": "response.function_call_arguments.done",
                **place,
                "item_id": "fc_1",
                "arguments": ARGUMENTS,
            },
            {"type": "response.output_item.done", **place, "item": item},
            {"type": "response.completed", "response": whole},
        )
        return whole, (_event({**each, "sequence_number": at}, named=True) for at, each in enumerate(said))

    def _messages(self, model: str) -> tuple[Any, Iterator[bytes]]:
        block = {"type": "tool_use", "id": "toolu_1", "name": self.tool, "input": orjson.loads(ARGUMENTS)}
        usage = {"input_tokens": 1, "output_tokens": 1}
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "usage": usage}
        end = {"stop_reason": "tool_use", "stop_sequence": None}
        delta = {"type": "input_json_delta", "partial_json": ARGUMENTS}
        none = {"stop_reason": None, "stop_sequence": None}
        said: tuple[dict[str, Any], ...] = (
            {"type": "message_start", "message": {**head, "content": [], **none}},
            {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        )
        return {**head, "content": [block], **end}, (_event(each, named=True) for each in said)


def _event(data: dict[str, Any], *, named: bool = False) -> bytes:
    name = f"event: {data['type']}\n".encode() if named else b""
    return name + b"data: " + orjson.dumps(data) + b"\n\n"
