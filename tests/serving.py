"""One namespace served on a plain nats-server: without accounts, certificates of agents, Redis or processes.

For what has to be seen from inside, or is too hostile for the SDK. Whoever holds the connection is every
agent, since nothing fixes the sender of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.admission.counters import Counters
from broker_policy.audit.record import Outcome, Record, RecordKind
from broker_policy.dlp import Apart
from broker_policy.jetstream import direct_get_page
from broker_policy.policy.follower import PolicyFollower
from broker_policy.policy.store import PolicyStore
from broker_policy.screen import Screen
from broker_policy.sealing import Sealer
from broker_policy.service import NamespaceService
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.governance import Governance
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Verdict
from tests.audit_log import KEY, NAMESPACE, make_streams

SEALING_KEY = SealingKey("00000001", b"s" * 32)
_ids = itertools.count(1)
_workers = itertools.count(1)


def document(
    agents: Sequence[str] = ("alice", "bob"),
    allow: Mapping[str, Sequence[str]] | None = None,
    limits: Limits | None = None,
    governance: Governance | None = None,
) -> Document:
    """A policy; without ``allow`` everybody may reach everybody."""
    rules = dict.fromkeys(agents, ("*",)) if allow is None else allow
    return Document(
        namespace=NAMESPACE,
        account="",
        agents={agent: AgentPolicy(account="", capabilities=("qa",)) for agent in agents},
        permissions={sender: Permissions(allowed_targets=tuple(to)) for sender, to in rules.items()},
        limits=limits or Limits(),
        governance=governance or Governance(),
    )


@dataclass
class Recall:
    """What the audit is taken to know: commitments by sender and id."""

    known: dict[tuple[str, str], str] = field(default_factory=dict)
    letters: set[int] | None = field(default_factory=set)  # of which messages were made; None: silent

    async def __call__(self, sender: str, message_id: str) -> str | None:
        return self.known.get((sender, message_id))

    async def redriven(self, sender: str, message_id: str, letter: int) -> bool | None:
        return None if self.letters is None else letter in self.letters


@dataclass
class Serving:
    """A served namespace, as callers and the log see it."""

    nc: Client
    service: NamespaceService
    follower: PolicyFollower
    store: PolicyStore
    recall: Recall

    async def call(
        self, agent: str, op: str, body: object = None, *, timeout: float = 30, **fields: str
    ) -> Verdict:
        """One call; ``body`` is JSON, or bytes as they are."""
        raw = body if isinstance(body, bytes) else orjson.dumps({} if body is None else body)
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        answer = await self.nc.request(subjects.call(agent, op), raw, timeout=timeout, headers=named or None)
        return Verdict.decode(answer.data)

    async def send(self, sender: str, target: str, body: object = None, *, id: str = "") -> Verdict:  # noqa: A002
        """A send with its headers in order."""
        fields = {headers.MSG_ID: id or f"m{next(_ids)}", headers.TARGET: target, headers.TYPE: "work"}
        return await self.call(sender, "send", body, **fields)

    async def log(self) -> list[Any]:
        """The whole log, in order."""
        found: list[Any] = []
        while page := await direct_get_page(
            self.nc, subjects.INBOX_STREAM, ">", found[-1].sequence + 1 if found else 1, batch=1000
        ):
            found += page
        return found

    async def records(self, writer: str = "") -> list[Record]:
        """The records in the log, of the writers whose names end so."""
        found = [
            Record.decode(each.data) for each in await self.log() if each.subject.startswith("mas.audit.")
        ]
        return [record for record in found if record.writer.endswith(writer)]

    async def outcomes_of_acts(self, count: int = 1) -> list[Outcome]:
        """Wait until so many acts are settled, at least; the outcomes of all that are, in their order."""
        async with asyncio.timeout(5):
            while True:
                found = [each.outcome for record in await self.records("a") for each in record.settlements]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)

    async def recorded(self, kind: RecordKind, timeout: float = 5) -> None:
        """Wait until some record is of ``kind``."""
        async with asyncio.timeout(timeout):
            while all(record.kind is not kind for record in await self.records()):
                await asyncio.sleep(0.02)


async def connected(nc: Client) -> ResilientClient:
    """Another connection to where ``nc`` is connected."""

    async def on_error(_: Exception) -> None:
        return

    another = ResilientClient()
    await another.connect_within(5, servers=[nc.connected_url.geturl()], error_cb=on_error)
    return another


@contextlib.asynccontextmanager
async def serving(
    nc: Client,
    policy: Document | None = None,
    *,
    through: Any = None,
    screen: Screen | None = None,
    apart: Apart | None = None,
    counters: Counters | None = None,
    token_ring: SealingRing | None = None,
) -> AsyncIterator[Serving]:
    """Serve ``policy`` (or one in which alice and bob may talk) for the length of the block.

    ``through``: the connection that the service has, when it is not the callers' own.
    """
    policy = policy or document()
    await make_streams(nc, policy.agents, policy.limits)
    store = PolicyStore(nc)
    stored = await store.get(NAMESPACE)
    await store.put(policy, expected=stored.sequence if stored else 0)
    worker = f"w{next(_workers)}"
    follower = PolicyFollower(nc, worker)
    await follower.start()
    recall = Recall()
    service = NamespaceService(
        through or nc,
        NAMESPACE,
        worker=worker,
        follower=follower,
        sealer=Sealer(worker, [SEALING_KEY]),
        record_key=KEY,
        recall=recall,
        listen=lambda: connected(nc),
        screen=screen,
        apart=apart,
        counters=counters,
        token_ring=lambda: token_ring,
    )
    await service.start()
    try:
        yield Serving(nc, service, follower, store, recall)
    finally:
        await service.stop()
        await follower.stop()
