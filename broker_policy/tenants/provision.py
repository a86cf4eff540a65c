"""What must be there before a worker can serve: accounts, streams, and what a manifest wants."""

from __future__ import annotations

from pathlib import Path

from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply_file
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.policy.document import Document, Limits
from mas_nats.wire.identity import DEFAULT_NAMESPACE


async def provision(
    connection: Endpoint, keys: ControllerKeys, public: PublicMaterial, manifest: Path | None = None
) -> list[str]:
    """Make or complete the operator's account, every known namespace, and what the manifest wants.

    Also needed after each start of the server, which forgets the streams that live in memory. Returns what
    was found lost, and what the manifest's reader has to say.
    """
    async with TenantController(connection, keys, public) as controller:
        await controller.ensure_control()
        control = await connect_control_admin(connection, keys)
        try:
            store = PolicyStore(control)
            known = [stored.document for stored in await store.namespaces()]
            for document in known:
                await controller.ensure_tenant(document.namespace, document.limits)
            if all(document.namespace != DEFAULT_NAMESPACE for document in known):
                account = await controller.ensure_tenant(DEFAULT_NAMESPACE, Limits())
                await store.put(Document(namespace=DEFAULT_NAMESPACE, account=account), expected=0)
            if manifest is None:
                return controller.losses
            applied = await apply_file(controller, store, manifest)
            return [
                *controller.losses,
                f"{manifest} applied as revision {applied.revision}",
                *applied.notices,
            ]
        finally:
            await control.close()
