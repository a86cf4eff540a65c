"""Brings a namespace to what a manifest wants: accounts and streams first, then policy, then the workers.

What an agent needs exists before policy lets it in. Whoever policy no longer knows is disconnected, and what
it leaves behind is retired (``retire``): its backlog goes to the dead letters, its state stays. Whoever may
do something else than before is disconnected, too, to come back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker_policy.dlp import ruleset
from broker_policy.policy.store import PolicyConflict, PolicyStore, Stored
from broker_policy.tenants.changes import Change, changes
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.drain import drain
from broker_policy.tenants.retire import Retired, retire_absent
from mas_nats.manifest import documents
from mas_nats.manifest.documents import Manifest
from mas_nats.manifest.wanted import Wanted
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.wire.identity import Role

log = logging.getLogger(__name__)

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did. ``added`` and ``removed`` are agents, ``changes`` everything."""

    namespace: str
    revision: int
    changed: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    notices: tuple[str, ...] = ()
    retired: tuple[Retired, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def unfinished(self) -> tuple[Retired, ...]:
        """Removed agents of which something stays; the next apply tries again."""
        return tuple(each for each in self.retired if each.left)


@dataclass(frozen=True, slots=True)
class AppliedManifest:
    """What applying a whole manifest did, namespace by namespace."""

    namespaces: tuple[Applied, ...]
    notices: tuple[str, ...]

    @property
    def revision(self) -> int:
        """The newest: policy has one count for all namespaces."""
        return max(each.revision for each in self.namespaces)


async def apply(
    controller: TenantController,
    store: PolicyStore,
    wanted: Wanted,
    *,
    confirm: float = 5.0,
    by: str = "mas apply",
    drain_for: float = 0.0,
    progress: Callable[[str], None] = log.info,
) -> Applied:
    """Bring a namespace to ``wanted`` and return when every live worker follows.

    Applying the same again changes nothing, but for finishing what an earlier one left unfinished. Messages
    that wait for an agent that is removed are moved to the dead letters; what keeps them from it is said in
    ``Applied.unfinished``. Before that it may handle them for ``drain_for`` seconds, while nobody may send it
    more. ``by`` is who the audit says it was; ``progress`` hears of long work.

    Raises:
        NotConfirmed: a live worker did not confirm within ``confirm`` seconds.
        PolicyConflict: somebody else kept changing the policy meanwhile.

    """
    await controller.ensure_control()  # the bucket of the workers' heartbeats may be lost, like all in memory
    account = await controller.ensure_tenant(wanted.namespace, wanted.limits)
    agents = {
        name: AgentPolicy(
            account=await controller.ensure_agent(wanted.namespace, name, wanted.limits, agent.state),
            capabilities=agent.capabilities,
            metadata=agent.metadata,
            state=agent.state,
        )
        for name, agent in wanted.agents.items()
    }
    inspectors = {
        name: await controller.ensure_inspector(wanted.namespace, name) for name in wanted.inspectors
    }
    document = Document(
        namespace=wanted.namespace,
        account=account,
        agents=agents,
        inspectors=inspectors,
        operators=wanted.operators,
        permissions=wanted.permissions,
        limits=wanted.limits,
        governance=wanted.governance,
        tokens=wanted.tokens,
    )
    stored = await store.get(wanted.namespace)
    if stored is not None:  # no manifest's affair
        tokens = document.tokens.with_tools_of(stored.document.tokens)
        document = document.model_copy(update={"revoked": stored.document.revoked, "tokens": tokens})
    if stored is not None and stored.document == document:
        await store.wait_confirmed(stored.sequence, timeout=confirm)
        await _kick_absent(controller, document)
        retired = await retire_absent(controller, store, stored, by=by, progress=progress)
        return Applied(
            wanted.namespace,
            stored.sequence,
            changed=False,
            added=(),
            removed=(),
            notices=wanted.notices,
            retired=tuple(retired),
        )
    done = changes(stored.document if stored else None, document)
    before = stored.document.agents if stored else {}
    if stored is not None:
        stored = await drain(
            controller, store, stored, document, seconds=drain_for, confirm=confirm, progress=progress
        )
    revision = await store.put(document, expected=stored.sequence if stored else 0)
    await store.wait_confirmed(revision, timeout=confirm)
    added = sorted(agents.keys() - before.keys())
    if added:
        await controller.look_again()
    for name in added:  # somebody who just removed it may have taken away what was made above
        await controller.ensure_agent(wanted.namespace, name, wanted.limits, agents[name].state)
    removed = sorted(before.keys() - agents.keys())
    switched = [name for name in agents.keys() & before.keys() if agents[name].state != before[name].state]
    for name in (*removed, *switched):  # the latter are back at once, with the permissions of their new state
        await controller.kick_account(before[name].account)
    await _kick_absent(controller, document)
    log.info("namespace %s is at revision %d", wanted.namespace, revision)
    now = Stored(document, revision)
    retired = await retire_absent(controller, store, now, by=by, progress=progress)
    return Applied(
        wanted.namespace,
        revision,
        changed=True,
        added=tuple(added),
        removed=tuple(removed),
        notices=wanted.notices,
        retired=tuple(retired),
        changes=done,
    )


async def _kick_absent(controller: TenantController, document: Document) -> None:
    """End what connections operators and inspectors have who are no more, also those an apply that died left.

    Agents lose their account (``retire``), which ends theirs.
    """
    present = {Role.OPERATOR: document.operators, Role.INSPECTOR: tuple(document.inspectors)}
    if kicked := await controller.kick_absent(document.namespace, present):
        log.info("%d connections ended of operators and inspectors who are no more", kicked)


async def apply_manifest(
    controller: TenantController,
    store: PolicyStore,
    manifest: Manifest,
    *,
    by: str = "mas apply",
    drain_for: float = 0.0,
    progress: Callable[[str], None] = log.info,
) -> AppliedManifest:
    """Bring every namespace of a manifest to what it wants, one after the other; ``apply`` says how.

    Raises:
        ConfigurationError: rules of data-loss prevention cannot be compiled; nothing was changed.
        NotConfirmed, PolicyConflict: as for ``apply``; the namespaces before are applied.

    """
    for each in manifest.namespaces:
        ruleset(each.wanted.governance.dlp)
    done = [
        await apply(controller, store, each.wanted, by=by, drain_for=drain_for, progress=progress)
        for each in manifest.namespaces
    ]
    return AppliedManifest(tuple(done), manifest.told)


async def apply_file(controller: TenantController, store: PolicyStore, path: Path) -> AppliedManifest:
    """Apply a manifest of either form.

    Raises:
        ConfigurationError: the file is wrong; nothing was changed.

    """
    return await apply_manifest(controller, store, documents.load(path))


async def set_permissions(
    store: PolicyStore, namespace: str, sender: str, permissions: Permissions, *, confirm: float = 5.0
) -> int:
    """Replace one sender's permissions; returns the revision when every live worker follows it.

    Raises:
        KeyError: there is no such namespace.
        NotConfirmed: a live worker did not confirm within ``confirm`` seconds.

    """
    return await edit(
        store,
        namespace,
        lambda document: document.model_copy(
            update={"permissions": {**document.permissions, sender: permissions}}
        ),
        confirm,
    )


async def edit(
    store: PolicyStore, namespace: str, change: Callable[[Document], Document], confirm: float = 5.0
) -> int:
    """Change a policy; returns the revision when every live worker follows it. Errors as above."""
    for _ in range(_TRIES):
        stored = await store.get(namespace)
        if stored is None:
            raise KeyError(f"there is no namespace {namespace!r}")
        try:
            revision = await store.put(change(stored.document), expected=stored.sequence)
        except PolicyConflict:
            continue  # somebody else was first: change what they left
        await store.wait_confirmed(revision, timeout=confirm)
        return revision
    raise PolicyConflict(namespace)
