"""Who is alive: the registry bucket of a namespace, as every worker follows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.jetstream import last_of_each, publish
from mas_nats.policy.table import Table
from mas_nats.wire import subjects

log = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds between two hellos of an instance."""
LOST_AFTER = 30.0
"""Seconds of silence after which an instance is no longer discovered; also the bucket's age limit."""


MOST_INSTANCES = 256
"""Live instances of one agent: as many as its account may have connections."""
MOST_BYTES = 256 << 10
"""Bytes that the instances of one agent may announce together, so that it does not fill the bucket."""
MOST_METADATA = 16 << 10
"""Bytes of metadata shown of one agent, besides the manifest's."""


class TooManyInstances(Exception):
    """An agent has too many instances, or they announce too much."""


@dataclass(frozen=True, slots=True)
class _Instance:
    capabilities: tuple[str, ...]
    metadata: dict[str, Any]
    size: int
    seen: float


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
        """An instance is alive; every worker hears of it.

        Raises:
            TooManyInstances: there is no room for it.

        """
        body = orjson.dumps({"capabilities": sorted(capabilities), "metadata": metadata})
        others = [each for name, each in self._alive(agent).items() if name != instance]
        if len(others) >= MOST_INSTANCES or sum(each.size for each in others) + len(body) > MOST_BYTES:
            raise TooManyInstances(agent)
        before = self._instances.get(agent, {}).get(instance)
        key = f"{agent}.{instance}"
        subject = subjects.kv_key(subjects.REGISTRY_BUCKET, key)
        self._instance_changed(subject, body)  # it takes room from here on
        try:
            await self._put(subjects.REGISTRY_BUCKET, key, body)
        except BaseException:
            if before is None:
                self._instance_changed(subject, b"{}")
            raise

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
        found = []
        for agent in sorted(self._instances):
            declared = table.agent(agent)
            if declared is None or agent == caller or not table.allows(caller, agent):
                continue
            alive = self._alive(agent).values()
            announced = {capability for instance in alive for capability in instance.capabilities}
            effective = announced & set(declared.capabilities)
            if alive and wanted <= effective:
                metadata: dict[str, Any] = {}
                room = MOST_METADATA
                for instance in alive:
                    room -= instance.size
                    if room < 0:
                        break
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
        await publish(self._nc, subjects.kv_key(bucket, key), body, {}, timeout=2)

    def _alive(self, agent: str) -> dict[str, _Instance]:
        oldest = self._clock() - LOST_AFTER
        return {name: each for name, each in self._instances.get(agent, {}).items() if each.seen >= oldest}

    async def _on_instance(self, message: Any) -> None:
        self._instance_changed(message.subject, message.data)

    async def _on_identity(self, message: Any) -> None:
        self._identity_changed(message.subject, message.data)

    def _identity_changed(self, subject: str, body: bytes) -> None:
        self._fingerprints[subject.rpartition(".")[2]] = body.decode(errors="replace")

    def _instance_changed(self, subject: str, body: bytes) -> None:
        agent, instance = subject.split(".")[2:4]
        alive = self._alive(agent)  # and so the lost ones are forgotten
        alive.pop(instance, None)
        try:
            raw = orjson.loads(body)
            if raw:
                capabilities, metadata = tuple(raw["capabilities"]), dict(raw["metadata"])
                alive[instance] = _Instance(capabilities, metadata, len(body), self._clock())
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the registry holds what no worker wrote, under %s: %r", subject, error)
        if alive:
            self._instances[agent] = alive
        else:
            self._instances.pop(agent, None)
