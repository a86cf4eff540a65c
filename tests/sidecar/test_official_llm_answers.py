"""What the official clients of OpenAI and Anthropic get of an answer that was searched."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import orjson
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.routing import Route

from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.test_llm_answers import APIS, CLEAN, KEY, Model, answers, decisions, streamed, whole

MODEL = "a-model"
STREAMED = pytest.mark.parametrize("stream", [False, True])
PARTS = ["It is ", "12 o'clock, ", "and all is well."]


@dataclass
class Spoken:
    """What a client understood."""

    text: str = ""
    tools: tuple[str, ...] = ()
    arguments: str = ""


@pytest.fixture
async def model(empty_town: Town, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Model]:
    """A language model, and the agent's sidecar, the proxy of this process, on the way to it."""
    model = Model()
    routes = [Route("/{path:path}", model.serve, methods=["POST"])]
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(Starlette(routes=routes)))
        reached = {"llm_host": "llm.test", "llm_base_url": f"http://127.0.0.1:{port}"}
        await empty_town.start(stack, "echo", **reached)
        monkeypatch.setenv("HTTP_PROXY", empty_town.proxy("echo"))
        for name in ("NO_PROXY", "no_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield model


async def speak(api: str, *, stream: bool, prompt: str = "What time is it?") -> Spoken:
    """Ask with the official client of the interface, which tries once."""
    if api == "messages":
        async with AsyncAnthropic(api_key="key", base_url="http://llm.test", max_retries=0) as anthropics:
            return await _messages(anthropics, prompt, stream=stream)
    async with AsyncOpenAI(api_key="key", base_url="http://llm.test/v1", max_retries=0) as client:
        return await (_chat if api == "chat" else _responses)(client, prompt, stream=stream)


async def _chat(client: AsyncOpenAI, prompt: str, *, stream: bool) -> Spoken:
    messages: Any = [{"role": "user", "content": prompt}]
    if not stream:
        said = (await client.chat.completions.create(model=MODEL, messages=messages)).choices[0].message
        called: Any = said.tool_calls or []
        tools = tuple(each.function.name for each in called)
        return Spoken(said.content or "", tools, "".join(each.function.arguments for each in called))
    spoken = Spoken()
    async for event in await client.chat.completions.create(model=MODEL, messages=messages, stream=True):
        delta = event.choices[0].delta
        spoken.text += delta.content or ""
        for call in delta.tool_calls or ():
            assert call.function is not None
            spoken.tools += (call.function.name,) if call.function.name else ()
            spoken.arguments += call.function.arguments or ""
    return spoken


async def _responses(client: AsyncOpenAI, prompt: str, *, stream: bool) -> Spoken:
    if not stream:
        answer = await client.responses.create(model=MODEL, input=prompt)
        calls = [each for each in answer.output if each.type == "function_call"]
        return Spoken(answer.output_text, tuple(each.name for each in calls), calls[0].arguments)
    spoken = Spoken()
    async for event in await client.responses.create(model=MODEL, input=prompt, stream=True):
        if event.type == "response.output_text.delta":
            spoken.text += event.delta
        elif event.type == "response.output_item.done" and event.item.type == "function_call":
            spoken.tools += (event.item.name,)
            spoken.arguments += event.item.arguments
    return spoken


async def _messages(client: AsyncAnthropic, prompt: str, *, stream: bool) -> Spoken:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": prompt}],
    }
    spoken = Spoken()
    if not stream:
        for block in (await client.messages.create(**asked)).content:
            if block.type == "text":
                spoken.text += block.text
            elif block.type == "tool_use":
                spoken.tools += (block.name,)
                spoken.arguments += orjson.dumps(block.input).decode()
        return spoken
    async for event in await client.messages.create(**asked, stream=True):
        if event.type == "content_block_start" and event.content_block.type == "tool_use":
            spoken.tools += (event.content_block.name,)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            spoken.text += event.delta.text
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            spoken.arguments += event.delta.partial_json
    return spoken


@APIS
@STREAMED
async def test_text_and_tools_arrive(empty_town: Town, model: Model, api: str, stream: bool):
    model.said = streamed(api, PARTS) if stream else whole(api, CLEAN)
    assert await speak(api, stream=stream) == Spoken(CLEAN, ("pay",), '{"to":"jane"}')
    assert {each["decision"] for each in answers(await decisions(empty_town))} == {"ALLOWED"}


@APIS
@STREAMED
async def test_a_secret_in_the_answer_is_refused_as_the_client_understands(
    empty_town: Town, model: Model, api: str, stream: bool
):
    model.said = streamed(api, ["take it: ", KEY]) if stream else whole(api, f"take {KEY}")
    client: Any = anthropic if api == "messages" else openai
    expected = client.APIError if stream else client.PermissionDeniedError
    with pytest.raises(expected) as refused:
        await speak(api, stream=stream)
    assert KEY not in str(refused.value)
    assert "DLP_BLOCKED" in str(refused.value) or "dlp" in str(refused.value.body)
