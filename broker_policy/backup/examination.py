"""Do the log, the audit and the checkpoints of a copied folder agree? Its own servers tell.

They are started on free ports, nobody else knows of them, and they see the copy as they would see what a
kill left behind: so this also shows that both come up on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from redis.asyncio import Redis

from broker_policy.audit import log
from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.numbering import WriterState, follow, receive
from broker_policy.audit.record import NewerRecord, RecordKind
from broker_policy.audit.store import Store
from broker_policy.backup.manifest import NamespaceState, StreamState
from broker_policy.embedded.durability import monitor
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.connect import connect_control_admin, connect_tenant_admin
from broker_policy.tenants.endpoint import Endpoint
from broker_policy.tenants.material import Material
from mas_nats.policy.document import Document

_LOADING = 900.0
"""Seconds for servers to load what may be gigabytes."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What a copied folder holds."""

    streams: tuple[StreamState, ...]
    namespaces: tuple[NamespaceState, ...]
    findings: tuple[str, ...]
    torn: tuple[str, ...]
    """Batches that are there in part: the copy was made in their middle, or before it a power cut was."""

    @property
    def disagreements(self) -> tuple[str, ...]:
        """All of both."""
        return self.findings + self.torn


async def examine(layout: Layout) -> Examined:
    """Start servers on ``layout`` and compare what they hold. Nothing may run there.

    Raises:
        ServerDied: a server does not come up on the data; the text has the end of its log.
        ConfigurationError: keys are missing or damaged.

    """
    material = Material.load(layout.keys)
    async with _servers(layout, material) as (nats, redis):
        endpoint = _endpoint(layout, nats)
        control = await connect_control_admin(endpoint, material.controller, name="backup")
        try:
            findings: list[str] = []
            torn: list[str] = []
            namespaces: list[NamespaceState] = []
            documents = [stored.document for stored in await PolicyStore(control).namespaces()]
            for document in documents:
                tenant = await connect_tenant_admin(endpoint, material.controller, document.namespace)
                try:
                    look = _Look(document, tenant, control, redis, material)
                    namespaces.append(await look.state())
                finally:
                    await tenant.close()
                findings += look.findings
                torn += look.torn
            streams = _streams(
                await asyncio.to_thread(monitor, nats.monitor_url, "/jsz?accounts=true&streams=true")
            )
        finally:
            await control.close()
    return Examined(streams, tuple(namespaces), tuple(findings), tuple(torn))


@asynccontextmanager
async def _servers(layout: Layout, material: Material) -> AsyncIterator[tuple[NatsServer, Redis]]:
    nats = NatsServer(
        layout.node(1, 1),
        material.public,
        server_cert=layout.server_cert,
        server_key=layout.server_key,
        ca=layout.ca,
        relaxed=True,
        log=layout.log("nats-server"),
    )
    redis = RedisServer(layout.redis, relaxed=True, log=layout.log("redis-server"))
    try:
        await redis.start(_LOADING)
        await nats.start(_LOADING)
        async with Redis.from_url(redis.url) as client:
            yield nats, client
    finally:
        await nats.stop()
        await redis.stop()


def _endpoint(layout: Layout, nats: NatsServer) -> Endpoint:
    paths = layout.policy_certificate("controller")
    return Endpoint(url=nats.url, ca=paths.ca, cert=paths.cert, key=paths.key)


class _Look:
    """At one namespace."""

    def __init__(
        self, document: Document, tenant: Client, control: Client, redis: Redis, material: Material
    ) -> None:
        self.findings: list[str] = []
        self.torn: list[str] = []
        self._namespace = document.namespace
        self._tenant = tenant
        self._checkpoints = CheckpointStream(control, document.namespace)
        self._store = Store(redis, document.namespace)
        self._key = material.worker.sealing.record_key

    async def state(self) -> NamespaceState:
        head = await self._store.head()
        last = await log.last_sequence(self._tenant)
        if head.sequence > last:
            self._found(f"the audit holds the log up to {head.sequence}, and the log ends at {last}")
        waiting = await self._follow(head.sequence, last)
        return NamespaceState(
            namespace=self._namespace,
            entries=head.index,
            head=head.hash.hex(),
            projected=head.sequence,
            log_last=last,
            waiting=waiting,
            signed=await self._signed(head.index),
        )

    async def _follow(self, projected: int, last: int) -> int:
        """Follow the records that the audit does not hold yet; how many there are."""
        raw: dict[bytes, bytes] = await self._store.redis.hgetall(self._store.layout.writers)
        writers: dict[str, WriterState | None] = {
            name.decode(): WriterState.decode(state) for name, state in raw.items()
        }
        waiting, at = 0, projected
        while (page := await log.read(self._tenant, at + 1, most=1000)).messages:
            for stored in page.messages:
                at = stored.sequence
                waiting += 1
                try:
                    received = receive(stored, self._namespace, self._key)
                except NewerRecord as newer:
                    self._found(f"the record at {at} of the log is of a newer version ({newer})")
                    return waiting
                if (record := received.record) is None:
                    self._found(f"the record at {at} of the log cannot be read")
                    continue
                step = follow(writers.get(record.writer), received)
                writers[record.writer] = None if record.kind is RecordKind.CLOSE else step.state
                for finding in step.findings:
                    numbers = f"{finding.first} to {finding.last}"
                    self._found(f"{finding.alarm} at records {numbers} of writer {record.writer}")
                if received.claimed > last:
                    self.torn.append(
                        f"{self._namespace}: the log ends within the batch of record {at}, as after a power "
                        "cut; in the durable profile nobody was told of what is missing"
                    )
        return waiting

    async def _signed(self, entries: int) -> int:
        signed, _ = await self._checkpoints.last()
        if signed is None:
            return 0
        checkpoint = signed.checkpoint
        if checkpoint.index > entries:
            self._found(f"entry {checkpoint.index} was signed, and the audit ends at {entries}")
        else:
            stored = (await self._store.entries_at([checkpoint.index])).get(checkpoint.index)
            if stored is None or stored.hash != checkpoint.hash:
                self._found(f"entry {checkpoint.index} is not the one that was signed")
        return checkpoint.index

    def _found(self, text: str) -> None:
        self.findings.append(f"{self._namespace}: {text}")


def _streams(jsz: Mapping[str, Any]) -> tuple[StreamState, ...]:
    found = []
    for account in jsz.get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            state = stream["state"]
            found.append(
                StreamState(
                    account=account["name"],
                    stream=stream["name"],
                    messages=state["messages"],
                    first=state["first_seq"],
                    last=state["last_seq"],
                    consumers=state.get("consumer_count", 0),
                )
            )
    return tuple(sorted(found, key=lambda state: (state.account, state.stream)))


def remove_traces(layout: Layout) -> None:
    """Remove what the servers' start has left beside the data."""
    for path in (*layout.logs.glob("*"), layout.node(1, 1) / "nats-server.conf", layout.redis / "redis.conf"):
        Path(path).unlink(missing_ok=True)
