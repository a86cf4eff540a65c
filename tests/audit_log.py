"""A log to project: the tenant's stream on a real server, and writers that write to it as workers do."""

from __future__ import annotations

import itertools
import secrets
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson
from nats.aio.client import Client

from broker_policy.audit.record import (
    DecisionLine,
    Outcome,
    Record,
    RecordKey,
    RecordKind,
    Report,
    Settlement,
    Way,
    digest,
)
from broker_policy.dedup import dedup_id
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.jetstream import publish
from broker_policy.tenants.streams import (
    ensure_control_streams,
    ensure_inbox_consumer,
    ensure_tenant_streams,
)
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects

NAMESPACE = "default"
KEY = RecordKey(b"k" * 32)
_ids = itertools.count()


async def connect(server: NatsServer, paths: CertificatePaths) -> ResilientClient:
    """Connect to a server without accounts, with the client that workers use."""
    context = ssl.create_default_context(cafile=paths.ca)
    context.load_cert_chain(paths.cert, paths.key)
    client = ResilientClient()
    await client.connect(server.url, tls=context, tls_hostname="localhost", pending_size=32 << 20)
    return client


async def make_streams(nc: Client, agents: Iterable[str] = ("bob",), limits: Limits | None = None) -> None:
    """The streams of tenant and CONTROL side by side, with an inbox for each agent."""
    limits = limits or Limits()
    await ensure_tenant_streams(nc.jetstream(), limits)
    await ensure_control_streams(nc.jetstream())
    for agent in agents:
        await ensure_inbox_consumer(nc.jetstream(), agent, limits)


def line(way: Way = Way.NONE, **changes: object) -> DecisionLine:
    """A decision; refused unless ``way`` says otherwise."""
    refused = way is Way.NONE
    made = DecisionLine(
        op="send",
        message_id=f"m{next(_ids):06}",
        sender="alice",
        target="bob",
        type="task",
        size=1000,
        decision="AUTHZ_DENIED" if refused else "ALLOWED",
        rule="default" if refused else "allowed_targets",
        way=way,
        time=time.time_ns() // 1_000_000,
        commitment="" if refused else "A" * 43,
        fingerprint="ab" * 32,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


@dataclass
class LogWriter:
    """One commit lane of a worker."""

    nc: Client
    name: str = field(default_factory=lambda: f"w{secrets.token_hex(3)}i")
    number: int = 0
    previous: str = ""

    def record(self, kind: RecordKind, **content: object) -> Record:
        """The next record, not written yet."""
        return Record(
            namespace=NAMESPACE,
            writer=self.name,
            number=self.number + 1,
            previous=self.previous,
            kind=kind,
            time=time.time_ns() // 1_000_000,
            revision=3,
            **content,  # type: ignore[arg-type]
        )

    async def write(self, kind: RecordKind, **content: object) -> int:
        """Write a record that goes alone; returns its log sequence."""
        return await self.put(self.record(kind, **content))

    async def put(self, record: Record, *, mac: str | None = None, subject: str = "") -> int:
        """Write ``record`` as it is, and go on after it."""
        body = record.encode()
        self.number, self.previous = record.number, digest(body)
        fields = {
            headers.MSG_ID: f"{record.writer}.{record.number}.{secrets.token_hex(4)}",
            headers.RECORD_MAC: KEY.mac(body) if mac is None else mac,
        }
        subject = subject or subjects.audit_record(record.writer, record.number)
        return (await publish(self.nc, subject, body, fields)).sequence

    async def open(self) -> LogWriter:
        """Write the opening record."""
        await self.write(RecordKind.OPEN)
        return self

    async def batch(self, lines: Sequence[DecisionLine]) -> int:
        """Decisions and their messages in one atomic batch; returns the record's log sequence."""
        record = self.record(RecordKind.DECISIONS, decisions=tuple(lines))
        body = record.encode()
        items = [
            (
                subjects.audit_record(self.name, record.number),
                body,
                {headers.MSG_ID: f"{self.name}.{record.number}", headers.RECORD_MAC: KEY.mac(body)},
            )
        ]
        for position, each in enumerate(lines):
            if each.way is Way.BATCH:
                items.append((subjects.inbox(each.target), b"{}", self.fields(each, record.number, position)))
        batch = secrets.token_hex(8)
        for place, (subject, content, fields) in enumerate(items, 1):
            out = fields | {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(place)}
            if place < len(items):
                await self.nc.publish(subject, content, headers=out)
            else:
                out[headers.BATCH_COMMIT] = "1"
                answer = orjson.loads((await self.nc.request(subject, content, timeout=10, headers=out)).data)
                assert "error" not in answer, answer
        self.number, self.previous = record.number, digest(body)
        return int(answer["seq"]) - len(items) + 1

    def fields(self, each: DecisionLine, number: int, position: int) -> dict[str, str]:
        """The headers of a delivery."""
        return {
            headers.MSG_ID: dedup_id(NAMESPACE, each.sender, each.message_id),
            headers.MESSAGE_ID: each.message_id,
            headers.AUDIT: f"{self.name}.{number}.{position}",
        }

    async def deliver(self, each: DecisionLine, position: int = 0) -> int:
        """The message of a lone decision of the last record; returns its log sequence."""
        fields = self.fields(each, self.number, position)
        return (await publish(self.nc, subjects.inbox(each.target), b"{}", fields)).sequence

    async def settle(self, *settlements: tuple[int, int, Outcome, int]) -> int:
        """A record of settlements: record number, position, outcome, sequence."""
        return await self.write(RecordKind.MARK, settlements=tuple(Settlement(*s) for s in settlements))

    async def report(self, agent: str, sequence: int, outcome: Outcome, *, attempt: int = 1) -> int:
        """A record of one report."""
        now = time.time_ns() // 1_000_000
        return await self.write(
            RecordKind.MARK, reports=(Report(agent, sequence, outcome, attempt, "ValueError", now),)
        )


async def handle(nc: Client, agent: str, count: int) -> list[int]:
    """Be the agent: take ``count`` messages and acknowledge them; their sequences."""
    pull = await nc.jetstream().pull_subscribe_bind(consumer=agent, stream=subjects.INBOX_STREAM)
    sequences: list[int] = []
    while len(sequences) < count:
        for message in await pull.fetch(count - len(sequences), timeout=5):
            sequences.append(message.metadata.sequence.stream)
            await message.ack_sync()
    await pull.unsubscribe()
    return sequences
