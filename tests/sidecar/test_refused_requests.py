"""A refused request of MCP is answered: clients that give up at any other status go on (ADR 45)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.sidecar.refusal import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    OUTCOME_UNKNOWN,
    REFUSED,
    UNAVAILABLE,
)
from tests.sidecar.answers import SERVED, last, outcome
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.test_at_most_once import HEADERS, META

URL = "http://bank.test/mcp"
VERSION = "2025-11-25"
SECRET = "AKIAIOSFODNN7EXAMPLE"


class Session:
    """Speaks MCP as the official client for Python does before version 2.

    It raises what HTTP calls an error where nobody is who could take it: the session is over then.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._fields = {"accept": HEADERS["accept"], "mcp-protocol-version": VERSION}
        self._calls = 0

    async def begin(self) -> None:
        who = {"name": "a", "version": "1"}
        opened = await self.ask("initialize", protocolVersion=VERSION, capabilities={}, clientInfo=who)
        self._fields["mcp-session-id"] = opened.headers["mcp-session-id"]
        await self.say({"method": "notifications/initialized"})

    async def say(self, message: dict[str, Any]) -> httpx.Response:
        return await self._http.post(URL, json={"jsonrpc": "2.0", **message}, headers=self._fields)

    async def ask(self, method: str, **params: Any) -> httpx.Response:
        self._calls += 1
        answer = await self.say({"id": self._calls, "method": method, "params": params})
        answer.raise_for_status()
        assert last(answer)["id"] == self._calls
        return answer

    async def tool(self, name: str, **arguments: Any) -> httpx.Response:
        return await self.ask("tools/call", name=name, arguments=arguments)


@pytest.fixture
async def session(empty_town: Town) -> AsyncIterator[Session]:
    """With a server that answers as JSON: a stream that has begun would be cut off after its error."""
    async with contextlib.AsyncExitStack() as stack:
        app = empty_town.bank.app(json_response=True)
        empty_town.ports["bank"] = await stack.enter_async_context(serving(app))
        await empty_town.start(stack, "bank", "shop")
        http = httpx.AsyncClient(proxy=empty_town.proxy("shop"), timeout=60)
        begun = Session(await stack.enter_async_context(http))
        await begun.begin()
        yield begun


async def test_a_session_goes_on_after_refused_calls(empty_town: Town, session: Session):
    assert outcome(await session.tool("balance", account="a")) == SERVED
    assert outcome(await session.tool("balance", account=SECRET)) == (REFUSED, 403)
    refused = await session.tool("secret")  # what it says is refused
    assert outcome(refused) == (OUTCOME_UNKNOWN, 502)
    assert SECRET not in refused.text
    assert outcome(await session.tool("balance", account="b")) == SERVED
    assert outcome(await session.tool("what is there", account="b")) == (INVALID_PARAMS, 400)
    assert outcome(await session.ask("tasks/get", taskId="t")) == (METHOD_NOT_FOUND, 501)
    assert outcome(await session.tool("balance", account="b")) == SERVED
    await empty_town.govern(Governance(rate_limit=RateLimits(per_hour=1)))
    await session.ask("ping")
    limited = await session.ask("tools/list")
    assert outcome(limited) == (UNAVAILABLE, 429)
    assert limited.json()["error"]["data"]["retry_after"] == int(limited.headers["retry-after"])
    await empty_town.govern(Governance())
    assert outcome(await session.tool("balance", account="c")) == SERVED


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.usefixtures("from_shop")
async def test_the_official_client_goes_on(town: Town, mode: str):
    async with Client(URL, mode=mode) as client:
        for arguments, tool, code, status in (
            ({"account": SECRET}, "balance", REFUSED, 403),
            ({}, "secret", OUTCOME_UNKNOWN, 502),
        ):
            with pytest.raises(MCPError) as caught:
                await client.call_tool(tool, arguments)
            assert (caught.value.error.code, caught.value.error.data["status"]) == (code, status)
        result = await client.call_tool("balance", {"account": "a"})
        assert result.content[0].text == "a: 100"  # type: ignore[union-attr]


async def test_a_refused_beginning_is_an_error_of_the_protocol(town: Town):
    await town.govern(Governance(rate_limit=RateLimits(per_hour=1)))
    asked = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
    async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
        assert outcome(await Session(http).ask("initialize", **asked)) == SERVED
        answer = await Session(http).ask("initialize", **asked)
    assert outcome(answer) == (UNAVAILABLE, 429)
    assert "mcp-session-id" not in answer.headers


async def test_what_is_no_request_has_its_status(session: Session):
    """Nothing waits for an answer to it, and the id of a response is one that the server chose."""
    for message in (
        {"method": "notifications/cancelled", "params": {"requestId": 9, "reason": SECRET}},
        {"id": 1, "result": {"action": "accept", "content": {"account": SECRET}}},
    ):
        answer = await session.say(message)
        assert answer.status_code == 403
        assert answer.json()["id"] is None
        error = answer.json()["error"]
        assert (error["code"], error["data"]["status"]) == (REFUSED, 403)
    assert outcome(await session.tool("balance", account="a")) == SERVED


CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
PAGE = {"origin": "http://evil.example"}


@pytest.mark.parametrize(
    ("method", "fields", "body", "status", "code"),
    [
        ("POST", {}, CALL, 200, REFUSED),  # the control
        ("GET", {}, CALL, 403, REFUSED),
        ("DELETE", {}, CALL, 403, REFUSED),
        ("POST", {}, {"jsonrpc": "2.0", "id": 1, "result": {}}, 403, REFUSED),
        ("POST", {}, {"jsonrpc": "2.0", "method": "notifications/cancelled"}, 403, REFUSED),
        ("POST", PAGE, CALL, 403, INVALID_REQUEST),  # MCP has this status for it
    ],
)
async def test_before_it_is_known_what_it_is(
    town: Town, method: str, fields: dict[str, str], body: dict[str, Any], status: int, code: int
):
    """For a host that stands for nobody, and for a page of a browser."""
    headers = {**HEADERS, "content-type": "application/json", "mcp-method": "tools/list", **fields}
    async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
        answer = await http.request(
            method, "http://elsewhere.test/mcp", content=orjson.dumps(body), headers=headers
        )
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["data"]["status"]) == (code, 403)
    asks = method == "POST" and "method" in body and "id" in body
    assert answer.json()["id"] == (1 if asks else None)


async def test_a_session_that_is_over_is_told_as_that(town: Town):
    """With the status 404 a client begins anew, which no error of a call could say."""
    async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
        begun = Session(http)
        await begun.begin()
        await town.sidecars["bank"].stop()
        async with contextlib.AsyncExitStack() as stack:
            await town.start(stack, "bank")
            with pytest.raises(httpx.HTTPStatusError, match="404"):
                await begun.ask("tools/list")
            anew = Session(http)
            await anew.begin()
            assert outcome(await anew.tool("balance", account="a")) == SERVED
