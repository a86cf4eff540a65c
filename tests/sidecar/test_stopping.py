"""A sidecar that is asked to stop lets the calls of its application finish; asked again, it ends them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.sidecar.conftest import Town
from tests.sidecar.running import running

HEADERS = {"mcp-protocol-version": "2026-07-28", "accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "progressToken": "steps",
}
ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def call(http: httpx.AsyncClient, name: str) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
    params = {"name": name, "arguments": {}, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {**HEADERS, "mcp-method": "tools/call", "mcp-name": name}
    return http.stream("POST", "http://bank.test/mcp", json=body, headers=headers)


@contextlib.asynccontextmanager
async def client(town: Town) -> AsyncIterator[httpx.AsyncClient]:
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "shop")
        yield await stack.enter_async_context(httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60))


@pytest.mark.parametrize("number", ASKED)
async def test_what_runs_is_finished_first(empty_town: Town, tmp_path: Path, number: signal.Signals):
    town = empty_town
    async with (
        client(town) as http,
        running(town, "bank", tmp_path) as sidecar,
        call(http, "stepwise") as answer,
    ):
        lines = answer.aiter_lines()
        async with asyncio.timeout(30):
            while "one" not in await anext(lines):
                pass
            sidecar.process.send_signal(number)
            town.bank.seen.set()
            rest = [line async for line in lines]
            assert await sidecar.process.wait() == 0
    assert any("two" in line and "result" in line for line in rest)


@pytest.mark.parametrize("number", ASKED)
async def test_a_second_signal_ends_it_at_once(empty_town: Town, tmp_path: Path, number: signal.Signals):
    town = empty_town

    async def forever(http: httpx.AsyncClient) -> None:
        async with call(http, "wait") as answer:
            await answer.aread()

    async with client(town) as http, running(town, "bank", tmp_path) as sidecar:
        waiting = asyncio.create_task(forever(http))
        async with asyncio.timeout(15):  # the call would be waited for for 30 s
            await town.bank.waiting.wait()
            while not town.bank.left.is_set():  # within a second another one counts as the same
                sidecar.process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(town.bank.left.wait(), 1.1)  # the application was told
            assert await sidecar.process.wait() == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
