"""``mas tools``: which tools of MCP servers are registered, which wait, and their approval."""

from __future__ import annotations

import difflib
import json as json_text
from typing import Annotated, Any

import typer

from broker_policy.cli.app import Folder, Json, Namespace, Output, app, command
from broker_policy.cli.apply import control
from broker_policy.cli.table import table
from broker_policy.embedded.layout import DEFAULT_FOLDER, Layout
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.tools import Offered, Standing, Tool, offered, register
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.mistakes import guess
from mas_nats.wire.identity import DEFAULT_NAMESPACE

tools = typer.Typer(help="See and approve the tools of MCP servers.", no_args_is_help=True)
app.add_typer(tools, name="tools")

Server = Annotated[str, typer.Argument(metavar="SERVER", help="The MCP server.")]
_WAITING = (Standing.NEW, Standing.HELD)


@command("list", group=tools, example="mas tools list")
async def list_(
    *, namespace: Namespace = DEFAULT_NAMESPACE, folder: Folder = DEFAULT_FOLDER, json: Json = False
) -> None:
    """List the tools of every MCP server, and how they stand.

    A tool that is `new` or `held` (it has changed since it was registered) is not shown to callers, and calls
    of it are refused, until it is approved.
    """
    async with control(Layout(folder.absolute())) as (controller, store):
        found = await _offered(controller, store, namespace)
    out = Output(json=json)
    for each in found:
        if not each.known:
            out.warn(f"the tools of {each.server} are not known: its sidecar has not seen them")
    rows = [tool for server in found for tool in server.tools]
    columns = ("SERVER", "TOOL", "STANDING", "CHANGED")
    shown = ((row.server, row.name, row.standing, row.change or "-") for row in rows)
    out.result({"namespace": namespace, "tools": [_row(each) for each in rows]}, table(columns, shown))


@command("show", group=tools, example="mas tools show tickets read_ticket")
async def show(
    server: Server,
    name: Annotated[str, typer.Argument(metavar="TOOL", help="The tool.")],
    *,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Print a tool as its server describes it; where it has changed, how."""
    async with control(Layout(folder.absolute())) as (controller, store):
        found = await _offered(controller, store, namespace)
    [tool] = _chosen(found, server, [name])
    document = _row(tool) | {"now": tool.now, "before": tool.before}
    Output(json=json).result(document, f"{server} {name}: {tool.standing}\n{_difference(tool)}")


@command("approve", group=tools, example="mas tools approve tickets read_ticket")
async def approve(
    server: Server,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TOOL]...", help="The tools; else --all.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every tool of the server that waits.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Register tools as they are now; done when every live worker follows. A sidecar follows in seconds."""
    if bool(names) == every:
        raise ConfigurationError("name the tools, or say --all")
    async with control(Layout(folder.absolute())) as (controller, store):
        found = await _offered(controller, store, namespace)
        chosen = _chosen(found, server, names or [])
        wanted = [each for each in chosen if each.standing in _WAITING]
        for each in chosen:
            if each.standing is Standing.GONE:
                raise ConfigurationError(f"{server} does not offer {each.name}: there is nothing to approve")
        if wanted:
            await register(store, namespace, wanted)
    document = {"namespace": namespace, "approved": [_row(each) for each in wanted]}
    lines = [f"approved: {each.server} {each.name}" for each in wanted] or ["nothing waits"]
    Output(json=json).result(document, "\n".join(lines))


async def _offered(controller: TenantController, store: PolicyStore, namespace: str) -> list[Offered]:
    stored = await store.get(namespace)
    if stored is None:
        names = [each.document.namespace for each in await store.namespaces()]
        close = guess(namespace, names)
        raise ConfigurationError(f"there is no namespace {namespace!r}{close}; there are {', '.join(names)}")
    return await offered(await controller.tenant(namespace), stored.document)


def _chosen(found: list[Offered], server: str, names: list[str]) -> list[Tool]:
    """The tools of ``server`` of these names; all where none is named."""
    there = next((each for each in found if each.server == server), None)
    if there is None:
        servers = [each.server for each in found]
        known = f"; there are {', '.join(servers)}" if servers else ""
        raise ConfigurationError(f"there is no MCP server {server!r}{guess(server, servers)}{known}")
    by_name = {each.name: each for each in there.tools}
    for name in names:
        if name not in by_name:
            known = f"; it has {', '.join(by_name)}" if by_name else ", and none is known of it"
            raise ConfigurationError(f"{server} has no tool {name!r}{guess(name, list(by_name))}{known}")
    return [by_name[name] for name in names] if names else list(there.tools)


def _row(tool: Tool) -> dict[str, Any]:
    return {
        "server": tool.server,
        "tool": tool.name,
        "standing": tool.standing,
        "fingerprint": tool.fingerprint,
        "registered": tool.registered,
        "changed": tool.change,
    }


def _difference(tool: Tool) -> str:
    now = _lines(tool.now)
    if tool.before is None or tool.before == tool.now:
        return "\n".join(now)
    return "\n".join(difflib.unified_diff(_lines(tool.before), now, "registered", "now", lineterm=""))


def _lines(described: Any) -> list[str]:
    # In ASCII: so that nothing in it is invisible, or moves the cursor.
    return json_text.dumps(described, indent=2).splitlines() if described else ["not known"]
