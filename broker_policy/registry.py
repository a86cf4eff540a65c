"""Who is alive: the registry bucket of a namespace, as every worker follows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.jetstream import last_of_each
from broker_policy.policy.table import Table
from mas_nats.wire import subjects

HEARTBEAT = 10.0
"""Seconds between two hellos of an instance."""
LOST_AFTER = 30.0
"""Seconds of silence after which an instance is no longer discovered; also the bucket's age limit."""


@dataclass(slots=True)
class _Instance:
    capabilities: tuple[str, ...]
    metadata: dict[str, Any]
    seen: float = field(default=0.0)


class Registry:
    """The live instances of one namespace."""

    def __init__(self, nc: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._nc = nc
        self._clock = clock
        self._instances: dict[str, dict[str, _Instance]] = {}
        self._fingerprints: dict[str, str] = {}

    async def start(self) -> None:
        """Load the bucket and follow it."""
        await self._nc.subscribe(subjects.kv_key(subjects.REGISTRY_BUCKET, "*.*"), cb=self._on_instance)
        await self._nc.subscribe(subjects.kv_key(subjects.IDENTITIES_BUCKET, "*"), cb=self._on_identity)
        for bucket, handle in (
            (subjects.REGISTRY_BUCKET, self._instance_changed),
            (subjects.IDENTITIES_BUCKET, self._identity_changed),
        ):
            for entry in await last_of_each(
                self._nc, subjects.kv_stream(bucket), subjects.kv_key(bucket, ">")
            ):
                handle(entry.subject, entry.data)

    async def announce(
        self, agent: str, instance: str, capabilities: Iterable[str], metadata: dict[str, Any]
    ) -> None:
        """An instance is alive; every worker hears of it."""
        body = orjson.dumps({"capabilities": sorted(capabilities), "metadata": metadata})
        await self._put(subjects.REGISTRY_BUCKET, f"{agent}.{instance}", body)

    async def withdraw(self, agent: str, instance: str) -> None:
        """An instance is stopping."""
        await self._put(subjects.REGISTRY_BUCKET, f"{agent}.{instance}", b"{}")

    async def authenticated(self, agent: str, fingerprint: str) -> None:
        """The callout accepted ``agent`` with this certificate."""
        await self._put(subjects.IDENTITIES_BUCKET, agent, fingerprint.encode())

    def fingerprint(self, agent: str) -> str:
        """SHA-256 of the certificate with which ``agent`` last authenticated; "" when unknown."""
        return self._fingerprints.get(agent, "")

    def discover(self, caller: str, capabilities: Iterable[str], table: Table) -> list[dict[str, Any]]:
        """Agents alive that ``caller`` may reach and that have all ``capabilities``.

        A capability counts when the manifest declares it and an instance announced it; metadata is the
        manifest's, completed by what instances announced.
        """
        wanted = set(capabilities)
        oldest = self._clock() - LOST_AFTER
        found = []
        for agent, instances in sorted(self._instances.items()):
            declared = table.agent(agent)
            if declared is None or agent == caller or not table.allows(caller, agent):
                continue
            alive = [instance for instance in instances.values() if instance.seen >= oldest]
            announced = {capability for instance in alive for capability in instance.capabilities}
            effective = announced & set(declared.capabilities)
            if alive and wanted <= effective:
                metadata: dict[str, Any] = {}
                for instance in alive:
                    metadata |= instance.metadata
                found.append(
                    {
                        "agent_id": agent,
                        "capabilities": sorted(effective),
                        "metadata": metadata | declared.metadata,
                        "instances": len(alive),
                    }
                )
        return found

    async def _put(self, bucket: str, key: str, body: bytes) -> None:
        await self._nc.request(subjects.kv_key(bucket, key), body, timeout=2)

    async def _on_instance(self, message: Any) -> None:
        self._instance_changed(message.subject, message.data)

    async def _on_identity(self, message: Any) -> None:
        self._identity_changed(message.subject, message.data)

    def _identity_changed(self, subject: str, body: bytes) -> None:
        self._fingerprints[subject.rpartition(".")[2]] = body.decode()

    def _instance_changed(self, subject: str, body: bytes) -> None:
        agent, instance = subject.split(".")[2:4]
        raw = orjson.loads(body)
        instances = self._instances.setdefault(agent, {})
        if not raw:
            instances.pop(instance, None)
            return
        instances[instance] = _Instance(tuple(raw["capabilities"]), raw["metadata"], self._clock())
        oldest = self._clock() - LOST_AFTER
        for lost in [name for name, each in instances.items() if each.seen < oldest]:
            del instances[lost]
