"""Which tools of an MCP server may be seen and called: those that are registered, as they were then (ADR 34).

The server's own sidecar looks at each list on its way out, so there is no moment in which a changed
description is shown. What it has seen it keeps in the durable state of its agent, where operators read it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mas_nats.errors import MasError, StateConflict
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.refusal import REFUSED, UNAVAILABLE, Refusal
from mas_nats.sidecar.tool import fingerprint, name_of
from mas_nats.sidecar.tool_list import MOST_TOOLS, NoList

logger = logging.getLogger("mas_nats")

_AWAY = 2.0
_EVERY = 60.0
"""Seconds between two looks at the server: while it does not answer, and else."""
_AGAIN = 1.0
"""Seconds between two questions whether policy knows more by now."""
CHANGED = "notifications/tools/list_changed"


@dataclass(frozen=True, slots=True)
class Behind:
    """What stands behind a registration.

    ``approved``: fingerprints of tools by name, as policy has them; None where it says nothing of this
    server, and "" for a tool that is registered whatever its description. ``ask`` asks policy anew, ``tools``
    the server; ``kept`` and ``keep`` are what was seen of it.
    """

    approved: Callable[[], Mapping[str, str] | None]
    ask: Callable[[], Awaitable[None]]
    tools: Callable[[], Awaitable[list[dict[str, Any]]]]
    kept: Callable[[], Mapping[str, Any]]
    keep: Callable[[dict[str, Any]], Awaitable[None]]
    now: Callable[[], float]  # seconds, of any clock that only rises
    pause: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)


class Registration:
    """Of one MCP server."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind
        self._seen: dict[str, str] = {}  # fingerprints, "" where two tools have the name
        self._asked = float("-inf")
        self._look = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at the server, and again now and then."""
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Look no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def require(self, call: Call) -> None:
        """Refuse the call of a tool that is not registered, or not as it is now.

        Raises:
            Refusal: by the rule ``tool_unregistered``, ``tool_held`` or ``tool_unseen``.

        """
        if call.operation != "tools/call" or self._behind.approved() is None:
            return
        if not self._passes(call.name):
            await self._ask_again()
        if not self._passes(call.name) and call.name not in self._seen:
            await self._look_now()
        approved = self._behind.approved()
        if approved is None or self._passes(call.name):
            return
        if call.name not in approved:
            text, rule = f"tool {call.name} is not registered", "tool_unregistered"
        elif call.name in self._seen:
            text, rule = f"tool {call.name} has changed since it was registered", "tool_held"
        else:
            text = f"tool {call.name} was not seen yet, so nobody knows whether it has changed"
            raise self._refused("tool_unseen", text, call, 503, UNAVAILABLE)
        raise self._refused(rule, text, call, 403, REFUSED)

    async def shown(self, data: Any) -> Any:
        """What a caller is shown of an answer, or an event of it, whatever it asked: no tool that is held."""
        if isinstance(data, dict) and data.get("method") == CHANGED:
            self._look.set()
        result = data.get("result") if isinstance(data, dict) else None
        tools = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(result, dict) or not isinstance(tools, list) or self._behind.approved() is None:
            return data
        unknown = self._remember(tools)
        if not all(map(self._allowed, tools)):
            await self._ask_again()
        if unknown:
            self._look.set()
        return {**data, "result": {**result, "tools": [each for each in tools if self._allowed(each)]}}

    # -- what is known -----------------------------------------------------------------------------
    def _passes(self, name: str) -> bool:
        wanted = (self._behind.approved() or {}).get(name)
        return wanted == "" or (wanted is not None and self._seen.get(name) == wanted)

    def _allowed(self, tool: Any) -> bool:
        """Whether this very description is registered."""
        name, approved = name_of(tool), self._behind.approved()
        wanted = (approved or {}).get(name)
        return approved is None or wanted == "" or (bool(name) and wanted == fingerprint(tool))

    def _remember(self, tools: list[Any]) -> bool:
        """Whether one of them was not seen so before. Of two by one name neither is that tool."""
        found: dict[str, str] = {}
        for tool in tools:
            if name := name_of(tool):
                found[name] = "" if name in found else fingerprint(tool)
        new = any(self._seen.get(name) != now for name, now in found.items())
        self._seen = found if len(self._seen) > 4 * MOST_TOOLS else self._seen | found
        return new

    async def _ask_again(self) -> None:
        """Policy may know more by now."""
        if self._behind.now() - self._asked < _AGAIN:
            return
        self._asked = self._behind.now()
        try:
            await self._behind.ask()
        except MasError as error:
            logger.info("policy cannot be asked about tools: %s", error)

    # -- looking -----------------------------------------------------------------------------------
    async def _follow(self) -> None:
        while True:
            wait = _EVERY if await self._look_now() else _AWAY
            try:
                async with asyncio.timeout(wait):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _look_now(self) -> bool:
        """Ask the server for its tools, and keep what is seen; whether that was done."""
        self._look.clear()
        if self._behind.approved() is None:
            return True
        try:
            tools = await self._behind.tools()
            self._remember(tools)
            await self._keep(tools)
        except NoList as error:
            logger.info("the tools of the server are not known: %s", error)
            return False
        except MasError as error:
            logger.warning("what was seen of the server's tools is not kept: %s", error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever a server says; it is asked again
            logger.error("the server's tools could not be looked at: %s", type(error).__name__)
            return False
        return True

    async def _keep(self, tools: list[dict[str, Any]]) -> None:
        """Keep each description by its fingerprint, and beside it the one that is registered."""
        approved = self._behind.approved() or {}
        before = self._behind.kept()
        kept: dict[str, Any] = {}
        for tool in tools:
            if not (name := name_of(tool)) or not (now := self._seen.get(name, "")):
                continue
            versions = {now: tool}
            earlier = before.get(name, {}).get("versions", {})
            if (wanted := approved.get(name)) in earlier:
                versions[str(wanted)] = earlier[wanted]
            kept[name] = {"now": now, "versions": versions}
        if kept != before:
            try:
                await self._behind.keep(kept)
            except StateConflict:
                logger.info("another instance has written what it saw")

    @staticmethod
    def _refused(rule: str, text: str, call: Call, status: int, code: int) -> Refusal:
        fix = f"Look at it with mas tools show, then mas tools approve SERVER {call.name}"
        return Refusal(rule, text, fix, status, code, call.shape, call.request_id)
