"""What the explorer reads: the audit in Redis, the namespace's account, checkpoints and policy in CONTROL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.store import Store
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.tenants.connect import connect_control_reader, connect_tenant_reader
from broker_policy.tenants.material import ControllerKeys, PublicMaterial
from mas_nats.resilient import ResilientClient
from mas_nats.wire.identity import require_id

WRITABLE = "The explorer's connection to Redis could write: Redis has no user that only reads the audit"
"""What is said where that is so."""
WRITABLE_FIX = "Start the broker anew, which makes that user; in a Redis that it has joined, somebody must"
_NO_KEY = "mas:audit:-"
"""Fits the keys of audits, and is none."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Open connections, kept for as long as the explorer runs.

    Nothing here writes, and the servers would not let it. ``may_write``: Redis would, since there is no user
    of it that only reads.
    """

    namespace: str
    store: Store
    tenant: ResilientClient
    control: ResilientClient
    keys: Path
    may_write: bool

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
        redis, may_write = await _reader(broker, layout)
        stack.push_async_callback(redis.aclose)
        yield Sources(namespace, Store(redis, namespace), tenant, control, layout.keys, may_write)


async def _reader(broker: Broker, layout: Layout) -> tuple[Redis, bool]:
    """A connection to Redis, and whether it could write."""
    url = broker.redis_reader_url(layout)
    if url is not None:
        redis = _redis(url)
        try:
            may_write = await _may_write(redis)
        except AuthenticationError:  # Redis has no such user: its configuration is older than the file
            await redis.aclose()
        except (RedisError, OSError):  # it is away: who asks for something is told
            return redis, False
        else:
            return redis, may_write
    return _redis(broker.redis_url()), True


def _redis(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=30, socket_connect_timeout=2)


async def _may_write(redis: Redis) -> bool:
    """Whether Redis lets this user remove a key of the audit: one that is not there."""
    try:
        await redis.delete(_NO_KEY)
    except NoPermissionError:
        return False
    return True
