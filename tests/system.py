"""A whole running system, as ``mas up`` makes it, for the suites that need one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from redis.asyncio import Redis

from broker_policy.embedded.layout import Broker, Layout
from broker_policy.embedded.ports import free_port
from broker_policy.identity.pki import CertificateAuthority
from broker_policy.jetstream import publish
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import Applied, apply
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.material import Material
from mas_nats import TlsClientConfig
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import Limits, Permissions, key
from mas_nats.policy.governance import Governance
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from mas_nats.wire.identity import DEFAULT_TRUST_DOMAIN, Identity, Role

REPOSITORY = Path(__file__).parent.parent
_numbers = itertools.count(1)


@dataclass
class System:
    """A broker in a folder. Each test takes a namespace of its own, so that none disturbs another."""

    layout: Layout
    namespaces: set[str] = field(default_factory=set, init=False)  # applied here

    @classmethod
    def up(cls, folder: Path, *options: str) -> System:
        """``mas up --detach`` in ``folder``; what lies above it does not matter."""
        if "--manifest" not in options:
            options = ("--no-manifest", *options)
            if "--port" not in options and not Layout(folder).ports.exists():
                # Two test processes would both find 4222 free, and one of them not be served.
                options = ("--port", str(free_port()), *options)
        mas("up", "--detach", "--folder", str(folder), *options)
        return cls(Layout(folder))

    def down(self) -> None:
        """``mas down``."""
        mas("down", "--folder", str(self.layout.root))

    @property
    def broker(self) -> Broker:
        """Where it runs."""
        return Broker.read(self.layout)

    @property
    def material(self) -> Material:
        """All keys."""
        return Material.load(self.layout.keys)

    def tls(
        self, agent: str, namespace: str, *, role: Role = Role.AGENT, lifetime: timedelta = timedelta(hours=1)
    ) -> TlsClientConfig:
        """A certificate for ``agent``."""
        authority = CertificateAuthority.open_or_create(self.layout.authority)
        identity = Identity(DEFAULT_TRUST_DOMAIN, namespace, role, agent)
        paths = authority.issue(identity, self.layout.certs, lifetime=lifetime)
        return TlsClientConfig(paths.ca, paths.cert, paths.key)

    async def namespace(
        self,
        agents: Iterable[str] | Mapping[str, WantedAgent],
        allow: Mapping[str, Iterable[str]],
        *,
        block: Mapping[str, Iterable[str]] | None = None,
        limits: Limits | None = None,
        governance: Governance | None = None,
        name: str = "",
    ) -> str:
        """A new namespace with these agents and permissions; its name."""
        name = name or new_namespace()
        await self.apply(wanted(name, agents, allow, block=block, limits=limits, governance=governance))
        return name

    async def apply(self, what: Wanted) -> Applied:
        """Apply a manifest's content."""
        self.namespaces.add(what.namespace)
        async with self.control() as (controller, store):
            return await apply(controller, store, what)

    async def without_policy(self, namespaces: Iterable[str], *, confirm: bool = True) -> None:
        """Remove the policy of namespaces, as who may write its bucket can: workers let go of them soon."""
        control = await connect_control_admin(
            self.broker.connection(self.layout, "controller"), self.material.controller
        )
        try:
            for each in namespaces:
                subject = subjects.kv_key(subjects.POLICY_BUCKET, key(each))
                gone = await publish(control, subject, b"", {"KV-Operation": "DEL"})
            if confirm:
                await PolicyStore(control).wait_confirmed(gone.sequence)
        finally:
            await control.close()

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[tuple[TenantController, PolicyStore]]:
        """The tenant controller and the policy store."""
        endpoint, material = self.broker.connection(self.layout, "controller"), self.material
        async with TenantController(endpoint, material.controller, material.public) as controller:
            control = await connect_control_admin(endpoint, material.controller)
            try:
                yield controller, PolicyStore(control)
            finally:
                await control.close()

    @contextlib.asynccontextmanager
    async def tenant(self, namespace: str) -> AsyncIterator[ResilientClient]:
        """A connection with full rights in the tenant account."""
        endpoint = self.broker.connection(self.layout, "controller")
        client = await connect_tenant_admin(endpoint, self.material.controller, namespace)
        try:
            yield client
        finally:
            await client.close()

    @contextlib.asynccontextmanager
    async def redis(self) -> AsyncIterator[Redis]:
        """A connection to the audit's Redis."""
        async with Redis.from_url(self.broker.redis_url()) as client:
            yield client


def new_namespace() -> str:
    """A name that no other test has."""
    return f"t{os.getpid()}-{next(_numbers)}"


def wanted(
    namespace: str,
    agents: Iterable[str] | Mapping[str, WantedAgent],
    allow: Mapping[str, Iterable[str]],
    *,
    block: Mapping[str, Iterable[str]] | None = None,
    limits: Limits | None = None,
    governance: Governance | None = None,
) -> Wanted:
    """What a manifest with these agents and permissions wants."""
    declared = agents if isinstance(agents, Mapping) else {agent: WantedAgent(("qa",)) for agent in agents}
    blocked = block or {}
    return Wanted(
        namespace=namespace,
        agents=dict(declared),
        permissions={
            sender: Permissions(
                allowed_targets=tuple(allow.get(sender, ())), blocked_targets=tuple(blocked.get(sender, ()))
            )
            for sender in {*allow, *blocked}
        },
        limits=limits or Limits(),
        governance=governance or Governance(),
    )


def mas(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``mas``; its output as text."""
    done = subprocess.run(
        [sys.executable, "-m", "broker_policy.cli", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"mas {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done


def mas_json(*arguments: str) -> dict[str, object]:
    """Run ``mas … --json``; its result."""
    result: dict[str, object] = json.loads(mas(*arguments, "--json").stdout)
    return result
