"""What the explorer reads: the audit in Redis, the namespace's account, and the checkpoints in CONTROL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.store import Store
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import require_id


@dataclass(frozen=True, slots=True)
class Sources:
    """Open connections, kept for as long as the explorer runs. Nothing here writes."""

    namespace: str
    store: Store
    tenant: ResilientClient
    control: ResilientClient
    public: PublicMaterial

    @property
    def checkpoints(self) -> CheckpointStream:
        """The namespace's checkpoints."""
        return CheckpointStream(self.control, self.namespace)


@asynccontextmanager
async def opened(folder: Path, namespace: str) -> AsyncIterator[Sources]:
    """Connect to the broker of ``folder``.

    Raises:
        NotRunning: no broker runs there.
        MasError: there is no such namespace, or the keys are not here.

    """
    require_id(namespace, "namespace")
    layout = Layout(folder.absolute())
    broker = Broker.read(layout)
    endpoint = broker.connection(layout, "controller")
    keys = ControllerKeys.load(layout.keys)
    async with AsyncExitStack() as stack:
        tenant = await connect_tenant_admin(endpoint, keys, namespace, name="explorer")
        stack.push_async_callback(tenant.close)
        control = await connect_control_admin(endpoint, keys, name="explorer")
        stack.push_async_callback(control.close)
        redis = Redis.from_url(broker.redis_url(), socket_timeout=30, socket_connect_timeout=2)
        stack.push_async_callback(redis.aclose)
        yield Sources(namespace, Store(redis, namespace), tenant, control, PublicMaterial.load(layout.keys))
