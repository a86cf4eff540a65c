"""``mas get``: what there is at this moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import nats.errors
import typer

from broker_policy.cli.app import Folder, Json, Output, app, command
from broker_policy.cli.table import Cell, table
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.jetstream import JetStreamError
from broker_policy.policy.store import PolicyStore, Stored
from broker_policy.tenants import inventory
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.inventory import AgentRow, StreamRow
from broker_policy.tenants.material import ControllerKeys
from mas_nats.errors import ConfigurationError, MasError, Unavailable
from mas_nats.manifest.mistakes import guess
from mas_nats.resilient import ResilientClient

get_app = typer.Typer(help="List what there is: systems, agents, streams.", no_args_is_help=True)
app.add_typer(get_app, name="get")

Only = Annotated[
    str, typer.Option("--namespace", "-n", help="Only this multi-agent system. [default: every one]")
]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@command("mas", group=get_app, example="mas get mas")
async def get_mas(*, namespace: Only = "", folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """List the multi-agent systems with the revision of their policy and how much it names."""
    async with _Site.of(folder) as site:
        found = await site.namespaces(namespace)
    rows: list[dict[str, Cell]] = [
        {
            "namespace": each.document.namespace,
            "revision": each.sequence,
            "agents": len(each.document.agents),
            "inspectors": len(each.document.inspectors),
            "operators": len(each.document.operators),
            "roles": len(each.document.governance.roles),
        }
        for each in found
    ]
    columns = ("NAMESPACE", "REVISION", "AGENTS", "INSPECTORS", "OPERATORS", "ROLES")
    Output(json=json).result({"mas": rows}, table(columns, (tuple(row.values()) for row in rows)))


@command("agents", group=get_app, example="mas get agents -n default")
async def get_agents(*, namespace: Only = "", folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """List agents: instances that live, capabilities, messages that wait or are in flight, dead letters.

    Pending: not delivered yet; in flight: delivered and not finished, as in `mas top`.
    A capability in brackets is declared, and offered by no instance that lives.
    """
    rows: list[AgentRow] = []
    async with _Site.of(folder) as site:
        for each in await site.namespaces(namespace):
            async with site.tenant(each.document.namespace) as nc:
                rows += await inventory.agents(nc, each.document)
    columns = ("NAMESPACE", "AGENT", "TYPE", "INSTANCES", "CAPABILITIES", "PENDING", "IN FLIGHT", "DEAD")
    shown = (
        (
            row.namespace,
            row.agent,
            row.type,
            row.instances,
            ", ".join(each if each in row.announced else f"({each})" for each in row.capabilities) or "-",
            row.pending,
            row.in_flight,
            row.dead_letters,
        )
        for row in rows
    )
    Output(json=json).result({"agents": [row.row() for row in rows]}, table(columns, shown))


@command("streams", group=get_app, example="mas get streams -n default")
async def get_streams(*, namespace: Only = "", folder: Folder = DEFAULT_FOLDER, json: Json = False) -> None:
    """List streams and buckets: messages, bytes, and what limits them.

    INBOX has no limit of bytes of its own: the workers keep `log_bytes`.
    """
    rows: list[StreamRow] = []
    async with _Site.of(folder) as site:
        for each in await site.namespaces(namespace):
            async with site.tenant(each.document.namespace) as nc:
                rows += await inventory.streams(nc, each.document.namespace)
    columns = ("NAMESPACE", "STREAM", "STORAGE", "MESSAGES", "BYTES", "CONSUMERS", "COPIES", "LIMITS")
    shown = (
        (
            row.namespace,
            row.stream,
            row.storage,
            row.messages,
            _size(row.bytes),
            row.consumers,
            row.copies,
            _limits(row),
        )
        for row in rows
    )
    Output(json=json).result({"streams": [row.row() for row in rows]}, table(columns, shown))


class _Site:
    """What runs from a folder, asked with the controller's keys."""

    def __init__(self, store: PolicyStore, endpoint: Endpoint, keys: ControllerKeys) -> None:
        self._store = store
        self._endpoint = endpoint
        self._keys = keys

    @classmethod
    @asynccontextmanager
    async def of(cls, folder: Path) -> AsyncIterator[_Site]:
        layout = Layout(folder.absolute())
        endpoint = Broker.read(layout).connection(layout, "controller")
        keys = ControllerKeys.load(layout.keys)
        control = await connect_control_admin(endpoint, keys, name="get")
        try:
            yield cls(PolicyStore(control), endpoint, keys)
        except JetStreamError as error:
            raise MasError(f"it cannot be read: {error}") from None
        except nats.errors.Error as error:
            raise Unavailable(f"the streams do not answer ({type(error).__name__})") from None
        finally:
            await control.close()

    async def namespaces(self, only: str) -> list[Stored]:
        """Every namespace by name, or the one.

        Raises:
            ConfigurationError: there is none of this name.

        """
        found = sorted(await self._store.namespaces(), key=lambda each: each.document.namespace)
        chosen = [each for each in found if each.document.namespace == only] if only else found
        if not chosen and only:
            names = [each.document.namespace for each in found]
            raise ConfigurationError(
                f"there is no namespace {only!r}{guess(only, names)}; `mas get mas` lists them"
            )
        return chosen

    @asynccontextmanager
    async def tenant(self, namespace: str) -> AsyncIterator[ResilientClient]:
        """A connection inside a namespace."""
        nc = await connect_tenant_admin(self._endpoint, self._keys, namespace, name="get")
        try:
            yield nc
        finally:
            await nc.close()


def _limits(row: StreamRow) -> str:
    said = []
    if row.max_messages > 0:
        said.append(f"{row.max_messages} messages")
    if row.max_messages_per_subject > 0:
        said.append(f"{row.max_messages_per_subject} a subject")
    if row.max_bytes > 0:
        said.append(_size(row.max_bytes))
    if row.max_age > 0:
        said.append(f"{row.max_age:g} s")
    return ", ".join(said) or "-"


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"
