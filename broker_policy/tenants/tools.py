"""The tools of MCP servers: what their sidecars saw, and what policy has registered (ADR 34)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.jetstream import get_last
from broker_policy.policy.store import PolicyStore
from broker_policy.printable import printable
from broker_policy.tenants.apply import edit
from broker_policy.tenants.changes import Action, Change
from mas_nats.policy.applications import TOOL_NAME, ApplicationType
from mas_nats.policy.document import Document
from mas_nats.wire import subjects


class Standing(StrEnum):
    """How a tool stands."""

    REGISTERED = "registered"  # as it is now
    UNPINNED = "unpinned"  # registered whatever its description
    NEW = "new"  # not registered: it cannot be called, and is not shown
    HELD = "held"  # it has changed since: the same
    GONE = "gone"  # registered, and not seen on the server


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of ``server``. ``now`` and ``before``: as its server describes it, and as it was registered."""

    server: str
    name: str
    standing: Standing
    fingerprint: str = ""  # of what the server says now
    registered: str = ""
    now: Mapping[str, Any] | None = None
    before: Mapping[str, Any] | None = None

    @property
    def change(self) -> str:
        """What differs, in words."""
        if self.standing is not Standing.HELD or self.now is None:
            return ""
        if self.before is None:
            return "something is said otherwise than when it was registered"
        keys = dict.fromkeys((*self.before, *self.now))
        return ", ".join(key for key in keys if self.before.get(key) != self.now.get(key))


@dataclass(frozen=True, slots=True)
class Offered:
    """All tools of one server. ``known``: its sidecar has seen its list."""

    server: str
    known: bool
    tools: tuple[Tool, ...] = field(default=())

    @property
    def first(self) -> bool:
        """Whether none is registered yet."""
        return all(each.standing is Standing.NEW for each in self.tools)


async def offered(nc: Client, document: Document) -> list[Offered]:
    """The tools of every MCP server of a namespace; ``nc`` is a connection inside its tenant account.

    Raises: as ``jetstream.get_last``.
    """
    return [
        _of(server, await _seen(nc, server), application.tools)
        for server, application in sorted(document.tokens.applications.items())
        if application.type is ApplicationType.MCP_SERVER
    ]


async def _seen(nc: Client, server: str) -> Mapping[str, Any] | None:
    """What the server's sidecar keeps in its state; None where there is nothing."""
    key = subjects.kv_key(subjects.STATE_BUCKET, server)
    stored = await get_last(nc, subjects.kv_stream(subjects.STATE_BUCKET), key)
    if stored is None or not stored.data:
        return None
    try:
        seen = orjson.loads(stored.data)["tools"]
        return {name: dict(each) for name, each in seen.items() if TOOL_NAME.fullmatch(name)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _of(server: str, seen: Mapping[str, Any] | None, registered: Mapping[str, str]) -> Offered:
    tools = []
    for name in sorted({*(seen or {}), *registered}):
        kept = (seen or {}).get(name, {})
        versions = kept.get("versions") if isinstance(kept.get("versions"), dict) else {}
        now, wanted = str(kept.get("now", "")), registered.get(name)
        if wanted is None:
            standing = Standing.NEW
        elif not now:
            standing = Standing.GONE
        elif wanted == "":
            standing = Standing.UNPINNED
        else:
            standing = Standing.REGISTERED if now == wanted else Standing.HELD
        before = versions.get(wanted) if wanted else None
        tools.append(Tool(server, name, standing, now, wanted or "", versions.get(now), before))
    return Offered(server, seen is not None, tuple(tools))


async def register(store: PolicyStore, namespace: str, tools: Iterable[Tool], *, confirm: float = 5.0) -> int:
    """Register ``tools`` as they are now; the revision of policy when every live worker follows it.

    Raises:
        NotConfirmed: a live worker did not confirm within ``confirm`` seconds.
        KeyError: there is no such namespace.

    """
    wanted = list(tools)

    def change(document: Document) -> Document:
        applications = dict(document.tokens.applications)
        for each in wanted:
            if (application := applications.get(each.server)) is not None:
                known = {**application.tools, each.name: each.fingerprint}
                applications[each.server] = application.model_copy(update={"tools": known})
        tokens = document.tokens.model_copy(update={"applications": applications})
        return document.model_copy(update={"tokens": tokens})

    return await edit(store, namespace, change, confirm)


def differences(found: Sequence[Offered]) -> tuple[Change, ...]:
    """What an apply registers: the tools of servers of which none was before."""
    return tuple(
        Change(Action.ADD, f"tool {each.server} {each.name}", _description(each))
        for server in found
        if server.first
        for each in server.tools
    )


def _description(tool: Tool) -> str:
    return printable(str((tool.now or {}).get("description", "")), 80)


def waiting(found: Sequence[Offered]) -> tuple[str, ...]:
    """What waits for approval, in words for whoever applies a manifest."""
    told = []
    for server in (each for each in found if not each.first):
        for tool in server.tools:
            if tool.standing is Standing.HELD:
                told.append(f"tool {tool.name} of {server.server} is held, it has changed: {tool.change}")
            elif tool.standing is Standing.NEW:
                told.append(f"tool {tool.name} of {server.server} is new, and held until it is approved")
    return tuple(told)
