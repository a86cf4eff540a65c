"""The official packages of OpenAI and Anthropic, unmodified, ask a language model through an agent's sidecar.

Only what their documentation names is set: the address, the key, and the usual proxy variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import openai
import pytest

from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.sidecar.refusal import REFUSED
from tests.sidecar import answers
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.guarded import BOTH, guard, policy
from tests.sidecar.providers import Providers
from tests.sidecar.test_tool_checks import EVERYONE, applications, call_tool, prompted, rule

KEY = "sk-of-the-application-0002"
SECRET = "AKIAIOSFODNN7EXAMPLE"
SELECTED = "DETERMINISTIC_LLM_SELECTED_TOOLS"

Select = Callable[[str], Awaitable[list[str]]]
"""Asks a model with a text; the names of the tools that the official client says it selected."""
HELLO: Any = [{"role": "user", "content": "hello"}]
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"number": {"type": "integer"}}}


@pytest.fixture
async def providers(empty_town: Town, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    """All sidecars run and want tokens; this process is the agent's application."""
    found = Providers("transfer_money")
    await guard(empty_town, policy(BOTH))
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(found.app()))
        reached = {"llm_host": "llm.test", "llm_base_url": f"http://127.0.0.1:{port}"}
        said = applications(empty_town)
        await empty_town.start(stack, *EVERYONE, tokens=True, applications=said, **reached)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, empty_town.proxy("echo"))
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "ANTHROPIC_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://llm.test/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://llm.test")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield found


async def chat(text: str) -> list[str]:
    function: Any = {"name": "transfer_money", "parameters": PARAMETERS}
    async with openai.AsyncOpenAI(max_retries=0) as client:
        answer = await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": text}],
            tools=[{"type": "function", "function": function}],
        )
    return [
        call.function.name for call in answer.choices[0].message.tool_calls or [] if call.type == "function"
    ]


async def chat_streamed(text: str) -> list[str]:
    names = []
    async with openai.AsyncOpenAI(max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": text}], stream=True
        )
        async for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or []:
                if call.function is not None and call.function.name:
                    names.append(call.function.name)
    return names


async def responses(text: str) -> list[str]:
    async with openai.AsyncOpenAI(max_retries=0) as client:
        answer = await client.responses.create(model="m", input=text)
    return [item.name for item in answer.output if item.type == "function_call"]


async def responses_streamed(text: str) -> list[str]:
    names = []
    async with openai.AsyncOpenAI(max_retries=0) as client:
        async for event in await client.responses.create(model="m", input=text, stream=True):
            if event.type == "response.output_item.done" and event.item.type == "function_call":
                names.append(event.item.name)
    return names


async def messages(text: str) -> list[str]:
    async with anthropic.AsyncAnthropic(max_retries=0) as client:
        answer = await client.messages.create(
            model="m",
            max_tokens=100,
            messages=[{"role": "user", "content": text}],
            tools=[{"name": "transfer_money", "input_schema": PARAMETERS}],
        )
    return [block.name for block in answer.content if block.type == "tool_use"]


async def messages_streamed(text: str) -> list[str]:
    async with (
        anthropic.AsyncAnthropic(max_retries=0) as client,
        client.messages.stream(
            model="m", max_tokens=100, messages=[{"role": "user", "content": text}]
        ) as stream,
    ):
        answer = await stream.get_final_message()
    return [block.name for block in answer.content if block.type == "tool_use"]


WAYS = [chat, chat_streamed, responses, responses_streamed, messages, messages_streamed]


@pytest.mark.parametrize("select", WAYS)
async def test_the_tool_that_the_model_selected_is_allowed_and_no_other(
    empty_town: Town, providers: Providers, select: Select
):
    town = empty_town
    outcome: list[Any] = []

    async def think(text: str) -> str:
        outcome.append(answers.outcome(await call_tool(town, "transfer_money")))  # the control: too early
        outcome.append(await select(text))
        outcome.append(answers.outcome(await call_tool(town, "transfer_money")))
        outcome.append(rule(await call_tool(town, "balance")))
        return ""

    town.echo.think = think
    assert (await prompted(town, "pay the rent")).status_code == 200
    assert outcome == [(REFUSED, 403), ["transfer_money"], answers.SERVED, f"policy.BLOCK:{SELECTED}"]
    assert (town.bank.transfers, town.bank.calls) == ([1], 0)
    assert "pay the rent" in str(providers.asked)
    assert KEY in str(providers.headers)


@pytest.mark.parametrize("select", WAYS)
async def test_a_prompt_that_policy_blocks_is_the_clients_own_error(providers: Providers, select: Select):
    with pytest.raises((openai.PermissionDeniedError, anthropic.PermissionDeniedError)) as refused:
        await select(f"the key is {SECRET}")
    told = refused.value.response.json()
    assert told["rule"].startswith("policy.")
    assert told["error"]["message"] in str(refused.value)
    assert SECRET not in str(refused.value)
    assert providers.asked == []


async def test_a_request_that_cannot_be_taken_is_a_bad_request(providers: Providers):
    async with openai.AsyncOpenAI(max_retries=0, default_query={"more": "x"}) as client:
        with pytest.raises(openai.BadRequestError, match="llm_path"):
            await client.responses.create(model="m", input="hello")
    async with anthropic.AsyncAnthropic(max_retries=0, default_query={"more": "x"}) as other:
        with pytest.raises(anthropic.BadRequestError, match="llm_path"):
            await other.messages.create(model="m", max_tokens=1, messages=HELLO)
    assert providers.asked == []


async def test_tools_that_the_provider_would_call_by_itself_are_refused(providers: Providers):
    outside: Any = [{"type": "mcp", "server_label": "bank", "server_url": "http://bank.test/mcp"}]
    async with openai.AsyncOpenAI(max_retries=0) as client:
        with pytest.raises(openai.PermissionDeniedError, match="llm_outside_tools"):
            await client.responses.create(model="m", input="hello", tools=outside)
    servers: Any = [{"type": "url", "url": "http://bank.test/mcp", "name": "bank"}]
    async with anthropic.AsyncAnthropic(max_retries=0) as other:
        with pytest.raises(anthropic.PermissionDeniedError, match="llm_outside_tools"):
            await other.messages.create(
                model="m",
                max_tokens=1,
                messages=HELLO,
                extra_body={"mcp_servers": servers},
            )
    assert providers.asked == []


async def test_a_limit_of_policy_is_the_clients_rate_limit_error(empty_town: Town, providers: Providers):
    await empty_town.govern(Governance(rate_limit=RateLimits(per_hour=2)))
    assert await responses("one") == await messages("two") == ["transfer_money"]
    with pytest.raises(openai.RateLimitError) as refused:
        await chat("three")
    assert int(refused.value.response.headers["retry-after"]) > 0
    with pytest.raises(anthropic.RateLimitError):
        await messages("four")
    assert len(providers.asked) == 2
