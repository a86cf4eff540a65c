"""Who is alive: the registry bucket of a namespace, as every worker follows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.jetstream import get_last_of_each, publish
from mas_nats.policy.instances import Instances
from mas_nats.policy.table import Table
from mas_nats.wire import subjects

log = logging.getLogger(__name__)


class TooManyInstances(Exception):
    """An agent has too many instances, or they announce too much."""


class Registry:
    """The live instances of one namespace."""

    def __init__(self, nc: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._nc = nc
        self._instances = Instances(clock)
        self._fingerprints: dict[str, str] = {}

    async def start(self) -> None:
        """Load the bucket and follow it."""
        await self._nc.subscribe(subjects.kv_key(subjects.REGISTRY_BUCKET, "*.*"), cb=self._on_instance)
        await self._nc.subscribe(subjects.kv_key(subjects.IDENTITIES_BUCKET, "*"), cb=self._on_identity)
        for bucket, handle in (
            (subjects.REGISTRY_BUCKET, self._instance_changed),
            (subjects.IDENTITIES_BUCKET, self._identity_changed),
        ):
            for entry in await get_last_of_each(
                self._nc, subjects.kv_stream(bucket), subjects.kv_key(bucket, ">")
            ):
                handle(entry.subject, entry.data)

    def knows(self, agent: str, instance: str) -> bool:
        """Whether the instance is taken to be alive."""
        return self._instances.knows(agent, instance)

    async def announce(
        self, agent: str, instance: str, capabilities: Iterable[str], metadata: dict[str, Any]
    ) -> None:
        """An instance is alive; every worker hears of it.

        Raises:
            TooManyInstances: there is no room for it.

        """
        body = orjson.dumps({"capabilities": sorted(capabilities), "metadata": metadata})
        if not self._instances.has_room(agent, instance, len(body)):
            raise TooManyInstances(agent)
        known = self.knows(agent, instance)
        key = f"{agent}.{instance}"
        subject = subjects.kv_key(subjects.REGISTRY_BUCKET, key)
        self._instance_changed(subject, body)  # it takes room from here on
        try:
            await self._put(subjects.REGISTRY_BUCKET, key, body)
        except BaseException:
            if not known:
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
        """Agents alive that ``caller`` may reach and that have all ``capabilities``."""
        return self._instances.discover(caller, capabilities, table)

    async def _put(self, bucket: str, key: str, body: bytes) -> None:
        await publish(self._nc, subjects.kv_key(bucket, key), body, {}, timeout=2)

    async def _on_instance(self, message: Any) -> None:
        self._instance_changed(message.subject, message.data)

    async def _on_identity(self, message: Any) -> None:
        self._identity_changed(message.subject, message.data)

    def _identity_changed(self, subject: str, body: bytes) -> None:
        self._fingerprints[subject.rpartition(".")[2]] = body.decode(errors="replace")

    def _instance_changed(self, subject: str, body: bytes) -> None:
        agent, instance = subject.split(".")[2:4]
        try:
            raw = orjson.loads(body)
            if raw:
                capabilities, metadata = tuple(raw["capabilities"]), dict(raw["metadata"])
                self._instances.announce(agent, instance, capabilities, metadata, len(body))
                return
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the registry holds what no worker wrote, under %s: %r", subject, error)
        self._instances.withdraw(agent, instance)
