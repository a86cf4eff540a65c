"""What the explorer reads: the audit in Redis, the namespace's account, and the checkpoints in CONTROL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import Store
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.tenants.connect import connect_control_reader, connect_tenant_reader
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import require_id


@dataclass(frozen=True, slots=True)
class Sources:
    """Open connections, kept for as long as the explorer runs.

    Nothing here writes. Over those to NATS the server would not let it; Redis knows no such difference.
    """

    namespace: str
    store: Store
    tenant: ResilientClient
    control: ResilientClient
    keys: Path

    @property
    def checkpoints(self) -> CheckpointStream:
        """The namespace's checkpoints."""
        return CheckpointStream(self.control, self.namespace)

    @property
    def checkpoint_keys(self) -> CheckpointKeys:
        """The keys that may have signed them; read anew, since they are rotated.

        Raises:
            ConfigurationError: a file is missing or damaged.

        """
        return PublicMaterial.load(self.keys).checkpoint_keys


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
        tenant = await connect_tenant_reader(endpoint, keys, namespace, name="explorer")
        stack.push_async_callback(tenant.close)
        control = await connect_control_reader(endpoint, keys, name="explorer")
        stack.push_async_callback(control.close)
        redis = Redis.from_url(broker.redis_url(), socket_timeout=30, socket_connect_timeout=2)
        stack.push_async_callback(redis.aclose)
        yield Sources(namespace, Store(redis, namespace), tenant, control, layout.keys)
