"""The official MCP client and server, unmodified, through two sidecars."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from mcp import Client, types

from tests.sidecar.conftest import Town

pytestmark = pytest.mark.usefixtures("from_shop")

URL = "http://bank.test/mcp"
MODES = ("legacy", "2026-07-28", "auto")


def text(result) -> str:
    return "".join(each.text for each in result.content)


@pytest.mark.parametrize("mode", MODES)
async def test_tools_are_listed_and_called(town: Town, mode: str):
    async with Client(URL, mode=mode) as client:
        expected = "2025-11-25" if mode == "legacy" else "2026-07-28"
        assert client.protocol_version == expected
        tools = await client.list_tools()
        assert {tool.name for tool in tools.tools} >= {"balance", "transfer_money"}
        assert text(await client.call_tool("balance", {"account": "a"})) == "a: 100"
    assert town.bank.calls == 1


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_progress_streams_back_and_large_results_are_whole(town: Town, mode: str):
    seen: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    async with Client(URL, mode=mode) as client:
        result = await client.call_tool("count", {"to": 20}, progress_callback=progress)
        assert text(result) == "counted to 20"
        assert seen == [float(number) for number in range(1, 21)]
        large = await client.call_tool("large", {"size": 100_000})
        assert text(large) == "é" * 100_000


async def test_a_client_that_leaves_cancels_the_tool(town: Town):
    async with Client(URL, mode="2026-07-28") as client:
        task = asyncio.create_task(client.call_tool("wait", {}))
        async with asyncio.timeout(30):
            await town.bank.waiting.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await town.bank.left.wait()


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_events_arrive_before_the_stream_ends(town: Town, mode: str):
    """The tool waits until its first event was seen: an event that is held back would never be."""

    async def progress(done: float, total: float | None, message: str | None) -> None:
        town.bank.seen.set()

    async with asyncio.timeout(60), Client(URL, mode=mode) as client:
        assert text(await client.call_tool("stepwise", {}, progress_callback=progress)) == "two"


async def test_a_server_asks_its_client_back(town: Town):
    """A request of the server in the stream of the answer; the client's answer is a POST of its own."""
    asked: list[str] = []

    async def answer(_: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"account": "a-1"})

    async with asyncio.timeout(60), Client(URL, mode="legacy", elicitation_callback=answer) as client:
        assert "a-1" in text(await client.call_tool("ask_back", {}))
    assert asked == ["which account?"]


async def test_the_standing_stream_of_a_session(town: Town):
    changed = asyncio.Event()

    async def heard(message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            changed.set()

    async with asyncio.timeout(60), Client(URL, mode="legacy", message_handler=heard) as client:
        while not changed.is_set():  # the stream may open after the first call
            await client.call_tool("change", {})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await changed.wait()
