"""People who look into a namespace: they are in its policy, as inspectors or operators."""

from __future__ import annotations

from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import edit
from broker_policy.tenants.controller import TenantController
from mas_nats.policy.document import Document
from mas_nats.wire.identity import Identity, Role


async def ensure_declared(controller: TenantController, store: PolicyStore, who: Identity) -> bool:
    """Let policy know ``who``, and bring the accounts up to date; whether policy did not know it before.

    Raises:
        KeyError: there is no such namespace.
        ValueError: it is neither an inspector nor an operator.
        NotConfirmed: a live worker did not confirm the policy in time.

    """
    if who.role not in (Role.INSPECTOR, Role.OPERATOR):
        raise ValueError(f"{who.uri} is neither an inspector nor an operator")
    stored = await store.get(who.namespace)
    if stored is None:
        raise KeyError(f"there is no namespace {who.namespace!r}")
    await controller.ensure_tenant(who.namespace, stored.document.limits)
    inspects = who.role is Role.INSPECTOR
    account = await controller.ensure_inspector(who.namespace, who.name) if inspects else ""
    known = stored.document.inspectors if inspects else stored.document.operators
    if who.name in known:
        return False

    def declare(document: Document) -> Document:
        if inspects:
            return document.model_copy(update={"inspectors": {**document.inspectors, who.name: account}})
        return document.model_copy(update={"operators": (*document.operators, who.name)})

    await edit(store, who.namespace, declare)
    return True
