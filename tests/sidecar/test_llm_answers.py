"""What a language model says is searched before the application gets it: three APIs, streamed or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mas_nats.errors import Unavailable
from mas_nats.policy.governance import Dlp, Governance
from mas_nats.sidecar.llm_search import Said
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict, accepted
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.system import mas_json

SSN = "219-09-9999"
KEY = "AKIAIOSFODNN7EXAMPLE"
REDACTED = "[REDACTED:ssn]"
PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
APIS = pytest.mark.parametrize("api", PATHS)
CLEAN = "It is 12 o'clock, and all is well."


@dataclass
class Model:
    """A language model that answers with ``said``: a document, or the events of a stream."""

    said: Any = None
    written: list[bytes] = field(default_factory=list)
    paced: asyncio.Event | None = None
    """Waited for before the last event."""
    raw: bytes = b""
    """Bytes of events, before those that are ``said``."""

    async def serve(self, request: Request) -> Response:
        await request.body()
        if isinstance(self.said, list):
            return StreamingResponse(self._events(), media_type="text/event-stream")
        self.written = [orjson.dumps(self.said)]
        return Response(self.written[0], media_type="application/json")

    async def _events(self) -> AsyncIterator[bytes]:
        self.written = [*([self.raw] if self.raw else []), *map(_written, self.said)]
        for each in self.written[:-1]:
            yield each
        if self.paced is not None:
            await self.paced.wait()
        yield self.written[-1]


def _written(said: Any) -> bytes:
    if isinstance(said, str):
        return f"data: {said}\n\n".encode()
    name = f"event: {said['type']}\n".encode() if "type" in said else b""
    return name + b"data: " + orjson.dumps(said) + b"\n\n"


@pytest.fixture
async def model(empty_town: Town) -> AsyncIterator[Model]:
    """A language model, and the agent's sidecar on the way to it."""
    model = Model()
    routes = [Route("/{path:path}", model.serve, methods=["POST"])]
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(Starlette(routes=routes)))
        reached = {"llm_host": "llm.test", "llm_base_url": f"http://127.0.0.1:{port}"}
        await empty_town.start(stack, "echo", **reached)
        yield model


# -- what models say in the three interfaces -------------------------------------------------------------
def whole(api: str, text: str, arguments: str = '{"to":"jane"}') -> dict[str, Any]:
    """An answer with a text and a call of a tool."""
    match api:
        case "chat":
            function = {"name": "pay", "arguments": arguments}
            message = {"role": "assistant", "content": text}
            message |= {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
            return {
                "id": "c1",
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            }
        case "responses":
            part = {"type": "output_text", "text": text, "annotations": []}
            call = {"type": "function_call", "call_id": "call_1", "name": "pay", "arguments": arguments}
            said = {"type": "message", "role": "assistant", "content": [part]}
            return {"id": "r1", "object": "response", "status": "completed", "output": [said, call]}
    block = {"type": "tool_use", "id": "call_1", "name": "pay", "input": orjson.loads(arguments)}
    return {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": text}, block],
        "stop_reason": "tool_use",
    }


def streamed(api: str, texts: list[str], arguments: list[str] | None = None) -> list[Any]:
    """The same as events: the text in parts, then a call whose arguments come in parts."""
    parts = ['{"to":', '"jane"}'] if arguments is None else arguments
    match api:
        case "chat":
            said = [{"content": text} for text in texts]
            begins = {"name": "pay", "arguments": ""}
            said.append({"tool_calls": [{"index": 0, "id": "call_1", "function": begins}]})
            said += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts]
            events: list[Any] = [_choice(each, None) for each in said]
            return [*events, _choice({}, "tool_calls"), "[DONE]"]
        case "responses":
            where = {"item_id": "i1", "output_index": 0, "content_index": 0}
            call = {"type": "function_call", "call_id": "call_1", "name": "pay", "arguments": ""}
            at = {"item_id": "i2", "output_index": 1}
            done = call | {"arguments": "".join(parts)}
            arguing = "response.function_call_arguments"
            return [
                {"type": "response.created", "response": {"id": "r1", "instructions": "be good"}},
                {"type": "response.in_progress", "response": {"id": "r1", "instructions": "be good"}},
                *({"type": "response.output_text.delta", **where, "delta": text} for text in texts),
                {"type": "response.output_text.done", **where, "text": "".join(texts)},
                {"type": "response.output_item.added", "output_index": 1, "item": call},
                *({"type": f"{arguing}.delta", **at, "delta": part} for part in parts),
                {"type": f"{arguing}.done", **at, "arguments": "".join(parts)},
                {"type": "response.output_item.done", "output_index": 1, "item": done},
                {"type": "response.completed", "response": whole(api, "".join(texts), "".join(parts))},
            ]
    begin = {"type": "content_block_start"}
    delta = {"type": "content_block_delta"}
    tool = {"type": "tool_use", "id": "call_1", "name": "pay", "input": {}}
    return [
        {"type": "message_start", "message": {"id": "m1", "content": [], "stop_reason": None}},
        {**begin, "index": 0, "content_block": {"type": "text", "text": ""}},
        *({**delta, "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts),
        {"type": "content_block_stop", "index": 0},
        {**begin, "index": 1, "content_block": tool},
        *(
            {**delta, "index": 1, "delta": {"type": "input_json_delta", "partial_json": part}}
            for part in parts
        ),
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]


def _choice(delta: dict[str, Any], why: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": why}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1764300000, "choices": [choice]}


async def asked(town: Town, api: str, *, stream: bool) -> tuple[int, bytes]:
    """What the application gets; of a stream that is cut off, what came before."""
    body, status = b"", 0
    async with httpx.AsyncClient(proxy=town.proxy("echo"), timeout=60) as http:
        with contextlib.suppress(httpx.RemoteProtocolError):
            url = f"http://llm.test{PATHS[api]}"
            sent = {"messages": [], "stream": stream}
            async with http.stream("POST", url, json=sent) as answer:
                status = answer.status_code
                async for part in answer.aiter_raw():
                    body += part
    return status, body


def heard(body: bytes) -> list[Any]:
    """The events of a stream."""
    data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [orjson.loads(each) for each in data if each != b"[DONE]"]


def texts_of(api: str, events: list[Any]) -> tuple[str, str]:
    """The text and the arguments that an application puts together from events."""
    text = arguments = ""
    for event in events:
        if api == "chat":
            delta = event["choices"][0]["delta"]
            text += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                arguments += call["function"].get("arguments", "")
        elif event["type"] == "response.output_text.delta":
            text += event["delta"]
        elif event["type"] == "response.function_call_arguments.delta":
            arguments += event["delta"]
        elif event["type"] == "content_block_delta":
            text += event["delta"].get("text", "")
            arguments += event["delta"].get("partial_json", "")
    return text, arguments


async def decisions(town: Town) -> list[dict[str, Any]]:
    """What the audit has of the agent's traffic with its model, once it is settled."""
    place = ("--namespace", town.namespace, "--folder", str(town.system.layout.root))
    async with asyncio.timeout(30):
        while True:
            found: Any = await asyncio.to_thread(mas_json, "audit", "query", "--sender", "echo", *place)
            about = [each for each in found["decisions"] if each["target"] == "llm:llm.test"]
            if about and all(each["outcome"] != "unsettled" for each in about):
                return about


def answers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those about answers; all are under the id of the prompt."""
    [prompt] = [each for each in found if each["type"].startswith("llm:")]
    about = [each for each in found if each["type"].startswith("llm_answer:")]
    assert {each["message_id"] for each in about} == {prompt["message_id"]}
    return about


# -- clean -----------------------------------------------------------------------------------------------
@APIS
@pytest.mark.parametrize("stream", [False, True])
async def test_a_clean_answer_is_the_same(empty_town: Town, model: Model, api: str, stream: bool):
    """Byte for byte, as the model writes it without blanks between its JSON."""
    model.said = (
        streamed(api, ["It is ", "12 o'clock, ", "and all is well."]) if stream else whole(api, CLEAN)
    )
    status, body = await asked(empty_town, api, stream=stream)
    assert (status, body) == (200, b"".join(model.written))
    about = answers(await decisions(empty_town))
    assert {each["decision"] for each in about} == {"ALLOWED"}
    assert {each["rule"] for each in about} == {"llm_answer"}


async def test_a_stream_is_read_as_it_comes(empty_town: Town, model: Model):
    """Prose does not wait for the end: the model says its last word only when the first was read."""
    model.said, model.paced = [_choice({"content": "let me see"}, None), "[DONE]"], asyncio.Event()
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(proxy=empty_town.proxy("echo"), timeout=60) as http,
        http.stream("POST", f"http://llm.test{PATHS['chat']}", json={"messages": []}) as answer,
    ):
        lines = [line async for line in _setting(answer.aiter_lines(), model.paced)]
    assert [line for line in lines if line][-1] == "data: [DONE]"


async def _setting(lines: AsyncIterator[str], event: asyncio.Event) -> AsyncIterator[str]:
    async for line in lines:
        event.set()
        yield line


# -- redacted --------------------------------------------------------------------------------------------
@APIS
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_redacted(empty_town: Town, model: Model, api: str, stream: bool):
    """In the text, where it is split over events, and in the arguments, which stay JSON."""
    if stream:
        model.said = streamed(
            api, ["the SSN is 219", "-09-", "9999, that is it"], ['{"ssn":"219-0', '9-9999"}']
        )
    else:
        model.said = whole(api, f"the SSN is {SSN}, that is it", orjson.dumps({"ssn": SSN}).decode())
    status, body = await asked(empty_town, api, stream=stream)
    assert status == 200
    assert SSN.encode() not in body
    if stream:
        text, arguments = texts_of(api, heard(body))
        assert text == f"the SSN is {REDACTED}, that is it"
        assert orjson.loads(arguments) == {"ssn": REDACTED}
    else:
        assert body == b"".join(model.written).replace(SSN.encode(), REDACTED.encode())
    found = await decisions(empty_town)
    assert "DLP_REDACTED" in {each["decision"] for each in answers(found)}
    assert SSN not in str(found)


# -- blocked ---------------------------------------------------------------------------------------------
@APIS
@pytest.mark.parametrize("where", ["text", "arguments"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_blocked(empty_town: Town, model: Model, api: str, where: str, stream: bool):
    """The application gets an error as its API has them, and no part of the secret."""
    if not stream:
        model.said = (
            whole(api, f"take {KEY}")
            if where == "text"
            else whole(api, CLEAN, orjson.dumps({"key": KEY}).decode())
        )
    elif where == "text":
        model.said = streamed(api, ["take it: ", "AKIAIOSF", "ODNN7EX", "AMPLE and go"])
    else:
        model.said = streamed(api, ["take it"], ['{"key":"AKIAIOSF', 'ODNN7EXAMPLE"}'])
    status, body = await asked(empty_town, api, stream=stream)
    assert b"AKIA" not in body
    assert b"ODNN7" not in body
    assert status == (200 if stream else 403)
    error = heard(body)[-1] if stream else orjson.loads(body)
    if api == "messages":
        assert (error["type"], error["error"]["type"]) == ("error", "permission_error")
        assert "DLP_BLOCKED" in error["error"]["message"]
    else:
        assert error["error"]["code"].startswith("policy.dlp:")
    found = await decisions(empty_town)
    [blocked] = [each for each in answers(found) if each["decision"] == "DLP_BLOCKED"]
    assert blocked["rule"].startswith("dlp:")
    assert blocked["message_id"] == error["message_id"]
    assert KEY not in str(found)


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_are_searched_as_what_they_say(empty_town: Town, model: Model, stream: bool):
    """Characters that JSON spells as escapes hide nothing."""
    hidden = r'{"key":"\u0041KIAIOSFODNN7EXAMPL\u0045"}'
    model.said = (
        streamed("chat", ["well"], [hidden[:20], hidden[20:]]) if stream else whole("chat", "", hidden)
    )
    _, body = await asked(empty_town, "chat", stream=stream)
    assert b"KIAIOSFODNN7" not in body


async def test_what_is_said_again_is_redacted_again(empty_town: Town, model: Model):
    """What was searched is not searched twice where it was clean, and only there."""
    said = streamed("responses", [CLEAN])
    for event in said[:2]:
        event["response"]["instructions"] = f"the SSN is {SSN}"
    model.said = said
    status, body = await asked(empty_town, "responses", stream=True)
    assert status == 200
    assert SSN.encode() not in body
    assert body.count(REDACTED.encode()) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_large(empty_town: Town, model: Model, stream: bool):
    """It is searched apart; more than one message carries is not handed over, where it cannot be divided."""
    words = "words and words; " * 20_000
    model.said = streamed("chat", [words, f"the SSN is {SSN}"]) if stream else whole("chat", words + SSN)
    status, body = await asked(empty_town, "chat", stream=stream)
    assert status == 200
    assert body == b"".join(model.written).replace(SSN.encode(), REDACTED.encode())
    model.said = streamed("chat", ["", words * 4]) if stream else whole("chat", words * 4)
    status, body = await asked(empty_town, "chat", stream=stream)
    error = heard(body)[-1] if stream else orjson.loads(body)
    assert error["error"]["code"] == "llm_answer"
    assert status == (200 if stream else 502)
    assert b"words" not in body


# -- where providers of OpenAI's interface say texts, too ------------------------------------------------
DEEP: dict[str, Callable[[str], dict[str, Any]]] = {
    "audio": lambda text: {"audio": {"id": "a", "transcript": text}},
    "parts": lambda text: {"content": [{"type": "text", "text": text}]},
    "the second part": lambda text: {"content": [{"type": "thinking", "thinking": []}, text]},
    "parts of a part": lambda text: {"content": [{"type": "thinking", "thinking": [{"text": text}]}]},
    "reasoning": lambda text: {"reasoning_details": [{"type": "t", "format": "f-1", "text": text}]},
    "beside arguments": lambda text: {"tool_calls": [{"index": 0, "extra": {"signature": text}}]},
}


@pytest.mark.parametrize("where", DEEP)
@pytest.mark.parametrize(
    "parts", [["the SSN is 219-0", "9-9999, yes"], ["it is AKIAIOSF", "ODNN7EXAMPLE, yes"]]
)
async def test_a_secret_split_over_texts_that_are_deep_in_a_delta(
    empty_town: Town, model: Model, where: str, parts: list[str]
):
    """No part of it is handed over, as of one in the ``content``."""
    said = [_choice(DEEP[where](part), None) for part in parts]
    model.said = [*said, _choice({}, "stop"), "[DONE]"]
    status, body = await asked(empty_town, "chat", stream=True)
    assert status == 200
    for part in (b"219-0", b"9-9999", b"AKIA", b"ODNN7"):
        assert part not in body
    found = heard(body)
    if "SSN" in parts[0]:
        assert found[0] == _choice(DEEP[where](f"the SSN is {REDACTED}"), None)
        assert found[1] == _choice(DEEP[where](", yes"), None)
    else:
        assert found[-1]["error"]["code"].startswith("policy.dlp:")


async def test_a_secret_split_over_parts_at_different_places_of_a_list(empty_town: Town, model: Model):
    one = {"content": [{"type": "text", "text": "the SSN "}, {"type": "text", "text": "is 219-"}]}
    two = {"content": [{"type": "text", "text": "09-9999, yes"}]}
    model.said = [_choice(one, None), _choice(two, None), _choice({}, "stop"), "[DONE]"]
    _, body = await asked(empty_town, "chat", stream=True)
    assert b"219-" not in body
    assert b"9999" not in body
    assert REDACTED.encode() in body


async def test_clean_texts_that_are_deep_in_a_delta_are_the_same(empty_town: Town, model: Model):
    said = [_choice(make(text), None) for make in DEEP.values() for text in ("all is ", "well, ", "at 12")]
    model.said = [*said, *streamed("chat", ["and here"])]
    status, body = await asked(empty_town, "chat", stream=True)
    assert (status, body) == (200, b"".join(model.written))


@pytest.mark.parametrize("delta", [{KEY: "text"}, {"audio": {KEY: "text"}}, {"content": [{KEY: ["text"]}]}])
async def test_the_names_of_texts_are_searched(empty_town: Town, model: Model, delta: dict[str, Any]):
    model.said = [_choice({"content": "well"}, None), _choice(delta, None), "[DONE]"]
    _, body = await asked(empty_town, "chat", stream=True)
    assert b"AKIA" not in body
    assert heard(body)[-1]["error"]["code"].startswith("policy.dlp:")


@pytest.mark.parametrize("delta", [{SSN: "text"}, {"audio": {SSN: "text"}}])
async def test_a_name_that_would_be_redacted_is_not_handed_over(
    empty_town: Town, model: Model, delta: dict[str, Any]
):
    model.said = [_choice(delta, None), "[DONE]"]
    _, body = await asked(empty_town, "chat", stream=True)
    assert SSN.encode() not in body


@pytest.mark.parametrize("data", [[_choice({"content": KEY}, None)], f"take {KEY}"])
async def test_events_that_are_no_objects_are_not_handed_over(empty_town: Town, model: Model, data: Any):
    model.raw = b"data: " + orjson.dumps(data) + b"\n\n"
    model.said = []
    _, body = await asked(empty_town, "chat", stream=True)
    assert b"AKIA" not in body
    assert heard(body)[-1]["error"]["code"] == "llm_answer"


# -- controls and failures -------------------------------------------------------------------------------
@APIS
@pytest.mark.parametrize("stream", [False, True])
async def test_without_the_rules_it_passes(empty_town: Town, model: Model, api: str, stream: bool):
    """The negative control: the same secrets reach the application where data-loss prevention is off."""
    await empty_town.govern(Governance(dlp=Dlp(enabled=False)))
    said = f"{SSN} and {KEY}"
    model.said = streamed(api, [said]) if stream else whole(api, said)
    status, body = await asked(empty_town, api, stream=stream)
    assert (status, body) == (200, b"".join(model.written))
    assert SSN.encode() in body


@pytest.mark.parametrize("stream", [False, True])
async def test_workers_that_do_not_know_answers(
    empty_town: Town, model: Model, stream: bool, monkeypatch: pytest.MonkeyPatch
):
    """A worker of an older version takes an answer for a prompt and allows it: it is not handed over."""
    calls = empty_town.sidecars["echo"]._alive().calls
    call = calls.call

    async def older(op: Op, body: bytes, fields: dict[str, str], *args: Any, **more: Any) -> Verdict:
        if fields.get("Mas-Type", "").startswith("llm_answer:"):
            return accepted(fields["Nats-Msg-Id"])
        return await call(op, body, fields, *args, **more)

    monkeypatch.setattr(calls, "call", older)
    with pytest.raises(Unavailable, match="older than this sidecar"):
        await empty_town.sidecars["echo"]._may_come(Said("0" * 32, "llm.test", "chat/completions", ()))
    model.said = streamed("chat", [CLEAN]) if stream else whole("chat", CLEAN)
    status, body = await asked(empty_town, "chat", stream=stream)
    assert CLEAN.encode() not in body
    error = heard(body)[-1] if stream else orjson.loads(body)
    assert error["error"]["code"] == "unavailable"
    assert status == (200 if stream else 503)
