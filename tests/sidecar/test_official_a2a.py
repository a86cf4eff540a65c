"""The official A2A client and server, unmodified, through two sidecars: both versions, both bindings."""

from __future__ import annotations

import asyncio
import uuid

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import Message, Part, Role, SendMessageRequest
from google.protobuf import json_format

from mas_nats.sidecar.refusal import REFUSED
from tests.sidecar import answers
from tests.sidecar.conftest import Town
from tests.sidecar.test_at_most_once import META

pytestmark = pytest.mark.usefixtures("from_shop")

URL = "http://echo.test"


def request(text: str) -> SendMessageRequest:
    message = Message(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=[Part(text=text)])
    return SendMessageRequest(message=message)


async def card_of(http: httpx.AsyncClient):
    return await A2ACardResolver(http, URL).get_agent_card()


async def test_the_card_leads_back_through_the_sidecar(town: Town):
    async with httpx.AsyncClient() as http:
        card = await card_of(http)
    assert card.name == "echo"
    assert {each.url for each in card.supported_interfaces} == {"http://echo.test/"}
    assert {each.protocol_binding for each in card.supported_interfaces} == {"JSONRPC", "HTTP+JSON"}
    assert not card.capabilities.push_notifications
    assert town.base("echo") not in json_format.MessageToJson(card)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
@pytest.mark.parametrize("version", ["1.0", "0.3"])
async def test_a_message_is_answered(town: Town, version: str, binding: str, streaming: bool):
    async with httpx.AsyncClient(timeout=30) as http:
        card = await card_of(http)
        only = [
            each
            for each in card.supported_interfaces
            if each.protocol_version == version and each.protocol_binding == binding
        ]
        assert only
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(only)
        config = ClientConfig(httpx_client=http, streaming=streaming, supported_protocol_bindings=[binding])
        client = ClientFactory(config).create(card)
        parts = [each async for each in client.send_message(request(f"hello {version}"))]
    assert f"you said hello {version}" in str(parts)
    assert town.echo.told == [f"hello {version}"]


async def test_an_answer_larger_than_a_message_is_whole(town: Town):
    """It travels as text, in parts; a request of that size is refused."""
    words = 'wörter \\ "sagen" ' * 60_000

    async def think(text: str) -> str:
        return words

    town.echo.think = think
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "message/send",
        "params": {"message": {"role": "user", "messageId": "m", "parts": [{"kind": "text", "text": "a"}]}},
    }
    async with httpx.AsyncClient(timeout=120) as http:
        answer = await http.post(f"{URL}/", json=body)
        assert len(answer.content) > 1_000_000
        assert answer.json()["result"]["parts"][0]["text"] == words
        body["params"] = {"message": {"parts": [{"kind": "text", "text": words}]}}
        assert (await http.post(f"{URL}/", json=body)).status_code == 413


async def test_an_agent_that_calls_a_tool_is_tied_to_what_made_it(town: Town):
    """Two requests at once: without ``traceparent`` it is not known for which it calls; with it, it is."""
    outcome: dict[str, tuple[int, int]] = {}
    both = asyncio.Barrier(2)
    passes_on = False
    params = {"name": "balance", "arguments": {"account": "a"}, "_meta": META}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "balance"}
    headers["accept"] = "application/json, text/event-stream"

    async def think(text: str) -> str:
        await both.wait()
        trace = {"traceparent": town.echo.traces[text]} if passes_on else {}
        async with httpx.AsyncClient(proxy=town.proxy("echo"), timeout=30) as http:
            answer = await http.post("http://bank.test/mcp", json=call, headers=headers | trace)
        outcome[text] = answers.outcome(answer)
        await both.wait()
        return answer.text

    town.echo.think = think

    async def ask(text: str) -> str:
        body = {
            "jsonrpc": "2.0",
            "id": text,
            "method": "message/send",
            "params": {
                "message": {"role": "user", "messageId": text, "parts": [{"kind": "text", "text": text}]}
            },
        }
        async with httpx.AsyncClient(timeout=30) as http:
            return (await http.post(f"{URL}/", json=body)).text

    said = await asyncio.gather(ask("a"), ask("b"))
    assert outcome == {"a": (REFUSED, 403), "b": (REFUSED, 403)}
    assert all("correlation" in each and "traceparent" in each for each in said)
    assert town.bank.calls == 0
    passes_on = True
    said = await asyncio.gather(ask("c"), ask("d"))
    assert (outcome["c"], outcome["d"]) == (answers.SERVED, answers.SERVED)
    passes_on, both = False, asyncio.Barrier(1)
    assert "a: 100" in await ask("e")  # the only one
    assert town.bank.calls == 3
