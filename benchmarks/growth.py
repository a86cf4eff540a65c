"""What more of something costs: two brokers, one with little and one with much of it, measured in turn.

Both are up all the time, each with workers, Redis and programs of its own; while one is measured the other
has nothing to do. A round ends when nats-server has taken the acknowledgement of the last message: with many
consumers that comes later than its handling. What is real of what is more:

* policy: it names 10,000 agents, with the accounts that they would have; every worker follows it.
* agents: each of the 1,000 or 10,000 has its account and its consumer, too. Two of them talk; the others are
  never connected.
* audit entries: a million in Redis, with all indexes, made by the projector's own draft and store.
* rules of data-loss prevention: 487 of a manifest's own, beside the 13 types that are built in.
* workers: real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from benchmarks import rounds
from benchmarks.pairs import Pair, peaks
from benchmarks.site import apply_policy, brought_up, grow_to, prepare
from benchmarks.traffic import NAMESPACE
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.tenants.connect import connect_tenant_admin
from broker_policy.tenants.material import Material
from mas_nats.policy.governance import Governance
from mas_nats.wire import subjects
from tests.audit_fill import APPEND, STEP, Cast, fill

LEVEL, CALLS = 256, 8_000
"""Sends in flight, and of one round: where a message's own cost shows most."""
FEW, SOME, MANY = 10, 1_000, 10_000
"""Agents."""
ENTRIES = 1_000_000
RULES = 487

_SIZE = {"BENCH_BYTES": "1024"}

Grow = Callable[[Layout, Broker], Awaitable[None]]


@dataclass(frozen=True)
class Site:
    """A broker, and what is put into it before it is measured."""

    grow: Grow
    workers: int = 2


@dataclass(frozen=True)
class Growth:
    """``key`` is the workload's name in the results."""

    key: str
    what: str
    more: Site
    less: Site

    @property
    def name(self) -> str:
        """As workloads are named."""
        return f"{self.key}/1KiB/c{LEVEL}"

    async def compared(self, times: int) -> dict[str, Any]:
        """Both in turn; with the most memory that each kind of process has had."""
        async with AsyncExitStack() as stack:
            pairs, folders = {}, {}
            for side, site in (("more", self.more), ("less", self.less)):
                folder, layout, broker = await stack.enter_async_context(brought_up(site.workers))
                await prepare(layout, broker)
                await site.grow(layout, broker)
                folders[side] = folder
                settled = await stack.enter_async_context(acknowledging(layout, broker))
                pairs[side] = await stack.enter_async_context(
                    Pair(folder, "receive", "send", CALLS, LEVEL, environment=_SIZE, settled=settled)
                )
            found = await rounds.compared(pairs, times)
            memory = {side: peaks(folder) for side, folder in folders.items()}
            return {"what": self.what, **found, "peak_mb": memory}


def growths(*, entries: int = ENTRIES) -> Iterator[Growth]:
    """Everything that may grow. ``entries`` of the audit: fewer only to try it out."""
    plain = Site(_nothing)
    few, many = (Site(_agents(count, served=False)) for count in (FEW, MANY))
    yield Growth("growth_policy", f"agents in policy: {FEW} to {MANY:,}", many, few)
    few, more, many = (Site(_agents(count, served=True)) for count in (FEW, SOME, MANY))
    yield Growth("growth_thousand", f"agents: {FEW} to {SOME:,}", more, few)
    yield Growth("growth_agents", f"agents: {FEW} to {MANY:,}", many, few)
    yield Growth("growth_audit", f"audit entries: 0 to {entries:,}", Site(_entries(entries)), plain)
    yield Growth("growth_rules", f"rules of DLP: 13 to {13 + RULES}", Site(_rules), plain)
    yield Growth("growth_workers", "workers: 1 to 4", Site(_nothing, workers=4), Site(_nothing, workers=1))


@asynccontextmanager
async def acknowledging(layout: Layout, broker: Broker) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What returns when nobody has anything of ``b``'s inbox left to handle or to acknowledge."""
    endpoint = broker.connection(layout, "controller")
    nc = await connect_tenant_admin(endpoint, Material.load(layout.keys).controller, NAMESPACE)
    js = nc.jetstream(timeout=30)

    async def settled() -> None:
        while True:
            inbox = await js.consumer_info(subjects.INBOX_STREAM, "b")
            if not inbox.num_pending and not inbox.num_ack_pending:
                return
            await asyncio.sleep(0.01)

    try:
        yield settled
    finally:
        await nc.close()


async def _nothing(layout: Layout, broker: Broker) -> None:
    pass


def _agents(count: int, *, served: bool) -> Grow:
    async def grow(layout: Layout, broker: Broker) -> None:
        await grow_to(layout, broker, count, served=served)

    return grow


async def _rules(layout: Layout, broker: Broker) -> None:
    rules = [_rule(number) for number in range(RULES)]
    await apply_policy(layout, broker, governance=Governance.model_validate({"dlp": {"rules": rules}}))


def _rule(number: int) -> dict[str, Any]:
    pattern = rf"\bPROJECT-{number:04d}-[0-9]{{6}}\b"
    return {"id": f"project-{number}", "type": "project", "pattern": pattern, "action": "block"}


def _entries(count: int) -> Grow:
    async def grow(_: Layout, broker: Broker) -> None:
        began = time.monotonic()
        async with Redis.from_url(broker.redis_url(), socket_timeout=60) as redis:
            await fill_audit(Store(redis, NAMESPACE), count)
            while (await redis.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110
                await asyncio.sleep(0.5)  # Redis tells nobody
        print(f"audit filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    return grow


async def fill_audit(store: Store, count: int) -> None:
    """At least ``count`` entries more, from decisions of 40 agents up to now, each handled."""
    wanted = (await store.head()).index + count
    start, first = int(time.time() * 1000) - STEP * count, 0
    while (await store.head()).index < wanted:
        with contextlib.suppress(Overtaken):  # by the projector: then nothing was added
            cast = Cast(start=start, logged=False)
            await fill(store, APPEND, seed=first + 1, first=first, cast=cast)
            first += APPEND
