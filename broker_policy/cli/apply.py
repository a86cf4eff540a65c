"""``mas apply``: agents and permissions from a manifest, into the running broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from broker_policy.cli.app import ExitCode, Folder, Json, Output, command, operator_name
from broker_policy.embedded.layout import DEFAULT_FOLDER, Broker, Layout
from broker_policy.keys.turns import unchanged
from broker_policy.policy.store import NotConfirmed, PolicyConflict, PolicyStore
from broker_policy.tenants.apply import Applied, apply_manifest
from broker_policy.tenants.changes import Change
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import ControllerError, TenantController
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from broker_policy.tenants.plan import Planned, plan
from broker_policy.tenants.tools import Offered, differences, offered, register, waiting
from mas_nats.errors import ConfigurationError, MasError
from mas_nats.manifest import documents, mas_yaml
from mas_nats.manifest.documents import Manifest
from mas_nats.manifest.wanted import Wanted


@command("apply", example="mas apply mas.yaml --dry-run")
async def apply(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Manifests, of either form; else $MAS_RUNNER_CONFIG_FILE, else the nearest mas.yaml.",
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be added, changed and removed.")
    ] = False,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            min=0,
            max=86_400,
            metavar="SECONDS",
            help="Let agents that are removed first handle what waits for them, for so long at most.",
        ),
    ] = 0.0,
    folder: Folder = DEFAULT_FOLDER,
    json: Json = False,
) -> None:
    """Bring the running broker to what manifests say; done when every live worker follows.

    Applying the same again changes nothing. Agents that a manifest no longer names are disconnected, and
    the messages that wait for them become dead letters (AGENT_REMOVED): see `mas dlq`. Their state is kept.
    Namespaces that no manifest names stay as they are.
    """
    out = Output(json=json)
    manifest = _read(files)
    layout = Layout(folder.absolute())
    async with control(layout) as (controller, store):
        if dry_run:
            planned = [await _planned(out, controller, store, each.wanted) for each in manifest.namespaces]
            _tell_plan(out, manifest, planned)
            return
        applied = await apply_manifest(
            controller, store, manifest, by=operator_name(), drain_for=drain, progress=out.progress
        )
        namespaces = [await _with_tools(out, controller, store, one) for one in applied.namespaces]
    for notice in applied.notices:
        out.warn(notice)
    for one in namespaces:
        for each in one.unfinished:
            out.warn(f"{each.agent} is removed, but what it left is not cleared: {each.left}")
    document = {
        "files": manifest.files,
        "dry_run": False,
        "revision": max(one.revision for one in namespaces),
        "changed": any(one.changed for one in namespaces),
        "namespaces": [_document(one) for one in namespaces],
        "notices": applied.notices,
    }
    lines = [line for one in namespaces for line in _lines(one, manifest)]
    out.result(document, "\n".join(lines))
    if any(one.unfinished for one in namespaces):
        raise typer.Exit(ExitCode.FAILED)


async def _with_tools(
    out: Output, controller: TenantController, store: PolicyStore, applied: Applied
) -> Applied:
    """Register the tools of servers of which none was before; say which wait for approval."""
    found = await _tools(controller, store, applied.namespace)
    for each in waiting(found):
        out.warn(f"{each}: see mas tools show, mas tools approve")
    if not (more := differences(found)):
        return applied
    first = [tool for server in found if server.first for tool in server.tools]
    revision = await register(store, applied.namespace, first)
    return replace(applied, changed=True, revision=revision, changes=(*applied.changes, *more))


async def _planned(out: Output, controller: TenantController, store: PolicyStore, wanted: Wanted) -> Planned:
    planned = await plan(controller, store, wanted)
    found = await _tools(controller, store, wanted.namespace) if planned.revision else []
    for each in waiting(found):
        out.warn(f"{each}: see mas tools show, mas tools approve")
    return replace(planned, changes=(*planned.changes, *differences(found)))


async def _tools(controller: TenantController, store: PolicyStore, namespace: str) -> list[Offered]:
    stored = await store.get(namespace)
    if stored is None or not stored.document.tokens.applications:
        return []
    return await offered(await controller.tenant(namespace), stored.document)


def _read(files: list[Path] | None) -> Manifest:
    if files:
        return documents.load(*files)
    path = mas_yaml.chosen(None)
    if path is None:
        raise ConfigurationError(f"there is no {mas_yaml.FILE_NAME} here or above: name the manifest")
    return documents.load(path)


@asynccontextmanager
async def control(layout: Layout) -> AsyncIterator[tuple[TenantController, PolicyStore]]:
    """The tenant controller and the policy store; what they meet is raised as an error for people."""
    endpoint = Broker.read(layout).connection(layout, "controller")
    with unchanged(layout.keys):
        keys, public = ControllerKeys.load(layout.keys), PublicMaterial.load(layout.keys)
        async with TenantController(endpoint, keys, public) as controller:
            control = await connect_control_admin(endpoint, keys)
            try:
                yield controller, PolicyStore(control)
            except PolicyConflict:
                text = "somebody else changed the policy at the same time: give the same command again"
                raise MasError(text) from None
            except (NotConfirmed, ControllerError) as error:
                raise MasError(str(error)) from None
            finally:
                await control.close()


# -- what it did -----------------------------------------------------------------------------------------
def _document(one: Applied) -> dict[str, Any]:
    return {
        "namespace": one.namespace,
        "revision": one.revision,
        "changed": one.changed,
        "changes": [_of_change(each) for each in one.changes],
        "added": one.added,
        "removed": one.removed,
        "retired": [{"agent": each.agent, "buried": each.buried} for each in one.retired],
        "unfinished": [{"agent": each.agent, "reason": each.left} for each in one.unfinished],
    }


def _lines(one: Applied, manifest: Manifest) -> Iterator[str]:
    yield from map(str, one.changes)
    yield from (
        f"  {each.agent}: {each.buried} messages are dead letters" for each in one.retired if each.buried
    )
    what = "applied" if one.changed else "nothing to do"
    yield f"{manifest.name}: {what}, namespace {one.namespace} is at revision {one.revision}"


# -- what it would do ------------------------------------------------------------------------------------
def _tell_plan(out: Output, manifest: Manifest, planned: list[Planned]) -> None:
    for notice in manifest.told:
        out.warn(notice)
    document = {
        "files": manifest.files,
        "dry_run": True,
        "changed": any(one.changed for one in planned),
        "namespaces": [
            {
                "namespace": one.namespace,
                "revision": one.revision,
                "changed": one.changed,
                "changes": [_of_change(each) for each in one.changes],
                "backlog": one.backlog,
            }
            for one in planned
        ],
        "notices": manifest.told,
    }
    out.result(document, "\n".join(line for one in planned for line in _plan_lines(one, manifest)))


def _plan_lines(one: Planned, manifest: Manifest) -> Iterator[str]:
    yield from map(str, one.changes)
    yield from (
        f"  {agent}: {count} messages would be dead letters" for agent, count in one.backlog.items() if count
    )
    at = f"is at revision {one.revision}" if one.revision else "is new"
    what = "would be changed" if one.changed else "nothing to do"
    yield f"{manifest.name}: {what}, namespace {one.namespace} {at}; nothing was done"


def _of_change(change: Change) -> dict[str, str]:
    return {"action": change.action, "what": change.what, "detail": change.detail}
