"""A call while the broker is away: what never left was not run; what may have left may have been."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from mas_nats.sidecar import Sidecar
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, UNAVAILABLE
from mas_nats.transport import NoAnswer
from mas_nats.wire.subjects import Op
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.conftest import Town
from tests.silent_proxy import SilentProxy, silent_proxy

LIMITS = {"begin": 3.0, "heartbeat": 1.0}
HEADERS = {"mcp-protocol-version": "2026-07-28", "accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass
class Shop:
    """A client's sidecar, and the way from it to the broker."""

    town: Town
    sidecar: Sidecar
    way: SilentProxy
    http: httpx.AsyncClient

    async def call(self, name: str, **arguments: Any) -> httpx.Response:
        params = {"name": name, "arguments": arguments, "_meta": META}
        return await self.ask("tools/call", params, **{"mcp-name": name})

    async def ask(self, method: str, params: dict[str, Any], **headers: str) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        said = {**HEADERS, "mcp-method": method, **headers}
        return await self.http.post("http://bank.test/mcp", json=body, headers=said)


@pytest.fixture
async def shop(empty_town: Town) -> AsyncIterator[Shop]:
    town = empty_town
    port = urlsplit(town.system.broker.url).port or 0
    async with contextlib.AsyncExitStack() as stack:
        way = await stack.enter_async_context(silent_proxy(port))
        await town.start(stack, "bank")
        tls = town.system.tls("shop", town.namespace)
        sidecar = Sidecar(town.settings("shop", limits=LIMITS), server_addr=way.url, tls=tls)
        await stack.enter_async_context(sidecar)
        proxy = f"http://{sidecar.address}"
        http = await stack.enter_async_context(httpx.AsyncClient(proxy=proxy, timeout=60))
        yield Shop(town, sidecar, way, http)


async def test_what_never_left_was_not_run(shop: Shop):
    assert outcome(await shop.call("balance", account="a")) == SERVED
    await shop.way.stop()
    answer = await shop.call("transfer_money", number=1)
    assert outcome(answer) == (UNAVAILABLE, 503)
    data = answer.json()["error"]["data"]
    assert (data["rule"], data["ran"]) == ("unavailable", "no")
    assert data["retry_after"] > 0
    await shop.way.start()  # and what is told of it is true
    assert outcome(await shop.call("balance", account="a")) == SERVED
    assert shop.town.bank.transfers == []


async def test_what_left_before_the_broker_went_away_may_have_been_run(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    """Its answer is lost with the connection; that later tries cannot leave takes nothing back."""
    connection: Any = shop.sidecar._alive().connection
    exchange = connection.exchange

    async def goes_away(subject: str, *what: Any) -> Any:
        answer = await exchange(subject, *what)
        if subject.endswith(f".{Op.REQUEST}"):
            await shop.way.stop()
            raise NoAnswer("lost with the connection")
        return answer

    monkeypatch.setattr(connection, "exchange", goes_away)
    answer = await shop.call("transfer_money", number=1)
    assert outcome(answer) == (OUTCOME_UNKNOWN, 504)
    data = answer.json()["error"]["data"]
    assert (data["rule"], data["ran"]) == ("outcome_unknown", "unknown")
    assert shop.town.bank.transfers == [1]
