"""What a measurement runs on: a broker in a folder of its own, two agents, and a plain stream beside them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from benchmarks.bare import BARE_RECORDS, BARE_STREAM, BARE_SUBJECT
from benchmarks.traffic import NAMESPACE, RAW_BUCKET, RAW_NAMESPACE, RAW_STREAM, RAW_SUBJECT
from broker_policy.embedded.batch_folders import BatchFolders
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.up import running
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import apply
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import Material
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import AgentPolicy, Limits, Permissions
from mas_nats.policy.governance import Governance
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role
from mas_nats.wire.state_mode import StateMode

REPOSITORY = Path(__file__).parent.parent


@asynccontextmanager
async def brought_up(
    workers: int = 2, *, relaxed: bool = False
) -> AsyncIterator[tuple[Path, Layout, Broker]]:
    """A broker in a folder of its own, which is there for as long as the block."""
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as name:
        layout = Layout(Path(name) / ".mas")
        plan = Plan(workers=workers, relaxed=relaxed)
        async with running(layout, plan, lambda line: print(line, file=sys.stderr)) as broker:
            yield Path(name), layout, broker


async def prepare(layout: Layout, broker: Broker) -> None:
    """Two agents and their certificates; beside them an account with plain streams and a plain bucket.

    The server gathers the batches of a plain stream in memory too, as it does those of agents.
    """
    await apply_policy(layout, broker)
    authority = CertificateAuthority.open_or_create(layout.authority)
    for name in ("a", "b", "direct"):
        identity = Identity(DEFAULT_TRUST_DOMAIN, NAMESPACE, Role.AGENT, name)
        authority.issue(identity, layout.certs, lifetime=timedelta(hours=1))
    material = Material.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    async with TenantController(endpoint, material.controller, material.public) as controller:
        await controller.ensure_tenant(RAW_NAMESPACE, Limits())
    raw = await connect_tenant_admin(endpoint, material.controller, RAW_NAMESPACE)
    js = raw.jetstream()
    for stream, subject, more in (
        (RAW_STREAM, RAW_SUBJECT, []),
        (BARE_STREAM, BARE_SUBJECT, [f"{BARE_RECORDS}.>"]),
    ):
        await js.add_stream(
            StreamConfig(
                name=stream,
                subjects=[subject, *more],
                storage=StorageType.FILE,
                retention=RetentionPolicy.WORK_QUEUE,
                discard=DiscardPolicy.NEW,
                allow_atomic=bool(more),
            )
        )
        consumer = ConsumerConfig(
            name="b",
            durable_name="b",
            filter_subject=subject,
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=2000,
        )
        await js.add_consumer(stream, consumer)
    await js.create_key_value(bucket=RAW_BUCKET)
    await raw.close()
    folders = BatchFolders(layout.node(1, 1), stream=BARE_STREAM)
    if folders.prepare():
        folders.link()


async def apply_policy(layout: Layout, broker: Broker, *, governance: Governance | None = None) -> None:
    """Apply the policy: ``a`` may send to ``b``."""
    agents = {"a": WantedAgent(), "b": WantedAgent(), "direct": WantedAgent(state=StateMode.DIRECT)}
    wanted = Wanted(
        namespace=NAMESPACE,
        agents=agents,
        permissions={"a": Permissions(allowed_targets=("b",))},
        limits=Limits(in_flight=256),
        governance=governance or Governance(),
    )
    material = Material.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    async with (
        TenantController(endpoint, material.controller, material.public) as controller,
        policy_store(layout, broker) as store,
    ):
        await apply(controller, store, wanted)


async def grow_to(layout: Layout, broker: Broker, count: int, *, served: bool) -> None:
    """Bring the policy of the namespace to ``count`` agents; the workers follow.

    Where they are ``served``, each has an account and a consumer, as ``apply`` makes them. Where they are
    not, policy names the accounts that they would have.
    """
    material = Material.load(layout.keys)
    endpoint = broker.connection(layout, "controller")
    async with (
        TenantController(endpoint, material.controller, material.public) as controller,
        policy_store(layout, broker) as store,
    ):
        stored = await store.get(NAMESPACE)
        assert stored is not None, "prepare() comes first"
        limits, agents = stored.document.limits, dict(stored.document.agents)
        for number in range(count - len(agents)):
            name = f"agent-{number:05}"
            if served:
                account = await controller.ensure_agent(NAMESPACE, name, limits)
            else:
                account = material.controller.account(f"{NAMESPACE}.{Role.AGENT}.{name}").public
            agents[name] = AgentPolicy(account=account)
            if served and number % 1000 == 999:
                print(f"{number + 1} agents made", file=sys.stderr, flush=True)
        document = stored.document.model_copy(update={"agents": agents})
        revision = await store.put(document, expected=stored.sequence)
        await store.wait_confirmed(revision, timeout=60)


@asynccontextmanager
async def policy_store(layout: Layout, broker: Broker) -> AsyncIterator[PolicyStore]:
    """The policies of this broker."""
    endpoint = broker.connection(layout, "controller")
    control = await connect_control_admin(endpoint, Material.load(layout.keys).controller)
    try:
        yield PolicyStore(control)
    finally:
        await control.close()


def machine() -> dict[str, Any]:
    """What it is measured on."""
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as folder:
        return {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "fsync_ms": round(fsync_time(Path(folder)) * 1e3, 3),
            "load": round(os.getloadavg()[0], 1),
        }


def fsync_time(folder: Path) -> float:
    """Median seconds of an fsync after a small write."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 1024)
            begun = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times)
