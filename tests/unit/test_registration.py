"""What a sidecar shows and lets call of its server's tools; policy and the server are the test's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mas_nats.errors import Unavailable
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.refusal import Refusal, Shape
from mas_nats.sidecar.registration import CHANGED, Behind, Registration
from mas_nats.sidecar.tool import fingerprint
from mas_nats.sidecar.tool_list import NoList

PAY = {"name": "pay", "description": "Pay.", "inputSchema": {}}
READ = {"name": "read", "description": "Read.", "inputSchema": {}}
OTHER = {**PAY, "description": "Pay mallory."}


def call(name: str) -> Call:
    return Call(Protocol.MCP, "2026-07-28", "tools/call", Shape.MCP, request_id=1, name=name)


def answer(*tools: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": list(tools)}}


class World:
    """Policy, the server, and what is kept."""

    def __init__(self, approved: Mapping[str, str] | None, *tools: dict[str, Any]) -> None:
        self.approved = approved
        self.later: Mapping[str, str] | None = None  # what policy says when it is asked anew
        self.tools: list[dict[str, Any]] | None = list(tools)
        self.kept: dict[str, Any] = {}
        self.questions = 0
        self.looks = 0
        self.looked = asyncio.Event()
        self.clock = 100.0
        self.registration = Registration(
            Behind(lambda: self.approved, self._ask, self._tools, lambda: self.kept, self._keep, self._now)
        )

    def _now(self) -> float:
        return self.clock

    async def _ask(self) -> None:
        self.questions += 1
        if self.later is None:
            raise Unavailable("nobody answers")
        self.approved = self.later

    async def _tools(self) -> list[dict[str, Any]]:
        self.looks += 1
        self.looked.set()
        if self.tools is None:
            raise NoList("it does not answer")
        return self.tools

    async def _keep(self, kept: dict[str, Any]) -> None:
        self.kept = kept

    async def rule(self, name: str = "pay") -> str:
        """By which rule a call is refused."""
        try:
            await self.registration.require(call(name))
        except Refusal as refusal:
            return refusal.rule
        return ""

    async def shown(self, *tools: Any) -> list[Any]:
        data = await self.registration.shown(answer(*tools))
        return list(data["result"]["tools"])


def registered(*tools: dict[str, Any]) -> dict[str, str]:
    return {tool["name"]: fingerprint(tool) for tool in tools}


async def test_where_policy_says_nothing_everything_passes():
    world = World(None, PAY)
    assert await world.rule() == ""
    assert await world.shown(PAY, OTHER, {"odd": 1}) == [PAY, OTHER, {"odd": 1}]
    assert world.looks == 0


async def test_what_is_registered_passes_and_nothing_else():
    world = World(registered(PAY), PAY, READ)
    assert await world.rule() == ""
    assert await world.rule("read") == "tool_unregistered"
    assert await world.shown(PAY, READ, {"name": "p\u0430y"}, {"name": 7}, "pay") == [PAY]
    world.tools = [OTHER, READ]
    assert await world.shown(OTHER, READ) == []
    assert await world.rule() == "tool_held"


async def test_a_tool_that_is_registered_whatever_its_description():
    world = World({"pay": ""}, PAY)
    assert await world.shown(OTHER) == [OTHER]
    assert await world.rule() == ""


async def test_before_the_server_was_seen_nobody_knows():
    world = World(registered(PAY))
    world.tools = None
    assert await world.rule() == "tool_unseen"
    world.tools = [PAY]
    assert await world.rule() == ""


async def test_policy_is_asked_anew_but_not_for_every_call():
    world = World({}, PAY)
    world.later = registered(PAY)
    assert await world.rule() == ""  # approved a moment ago
    assert world.questions == 1
    assert [await world.rule("read") for _ in range(5)] == ["tool_unregistered"] * 5
    assert world.questions == 1
    world.clock += 2
    assert await world.rule("read") == "tool_unregistered"
    assert world.questions == 2


async def test_what_policy_said_last_holds_while_nobody_answers():
    world = World(registered(PAY), PAY)
    assert await world.rule("read") == "tool_unregistered"
    assert await world.rule() == ""


async def test_two_descriptions_of_one_name_are_no_tool():
    world = World(registered(PAY), PAY, OTHER)
    assert await world.shown(PAY, OTHER) == [PAY]  # the one that is registered
    assert await world.rule() == "tool_held"


@contextlib.asynccontextmanager
async def following(world: World) -> AsyncIterator[None]:
    world.registration.start()
    try:
        async with asyncio.timeout(30):
            await world.looked.wait()
            yield
    finally:
        await world.registration.stop()


async def test_the_server_is_asked_when_it_says_that_its_list_changed():
    world = World(registered(PAY), PAY)
    async with following(world):
        assert await world.rule() == ""
        world.looked.clear()
        world.tools = [OTHER]
        await world.registration.shown({"jsonrpc": "2.0", "method": CHANGED})
        await world.looked.wait()
        while await world.rule() != "tool_held":
            await asyncio.sleep(0)
        assert world.kept["pay"]["now"] == fingerprint(OTHER)
        # What was registered stays beside it, so that somebody can look at both.
        assert world.kept["pay"]["versions"] == {fingerprint(PAY): PAY, fingerprint(OTHER): OTHER}


async def test_a_list_that_says_something_new_is_kept():
    world = World(registered(PAY), PAY)
    async with following(world):
        world.looked.clear()
        world.tools = [PAY, READ]
        await world.shown(PAY, READ)
        await world.looked.wait()
        while "read" not in world.kept:
            await asyncio.sleep(0)
