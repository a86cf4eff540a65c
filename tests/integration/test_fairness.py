"""One agent cannot hurt another (promise 8): big batches, repeated ids, full inboxes.

Nothing here is compared with a clock but what is promised in seconds; everything else is a ratio of what was
measured in the same run, and the fewer in the machine's way, the sharper.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson
import pytest
from nats.errors import TimeoutError as NothingThere

from broker_policy.audit import log
from broker_policy.audit.projector import Projector
from broker_policy.audit.store import Store
from broker_policy.commit.gathered import MAX_BATCH
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from tests.busy_worker import busy_worker, subject
from tests.system import System
from tests.traffic import Caller, at_rate, callers

pytestmark = pytest.mark.alone

# -- one worker under full batches -------------------------------------------------------------------

ORDINARY = ("o1", "o2", "o3", "o4")
EACH = 3  # in flight for each ordinary sender
FLOOD = 2 * MAX_BATCH  # in flight: while one batch is committed the next one fills
ALONE, TOGETHER = 2.0, 6.0  # seconds
MAX_LAG = 2.0  # seconds
COMPLETE_WITHIN = 5.0  # seconds


@pytest.fixture
def three_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of its own; the test adds the fourth worker."""
    running = System.up(tmp_path_factory.mktemp("fairness") / ".mas", "--workers", "3")
    yield running
    running.down()


@pytest.mark.slow
async def test_full_batches_in_one_worker_starve_nobody(three_workers: System) -> None:
    system = three_workers
    agents = [*ORDINARY, "flood", "sink", "target"]
    allow = {agent: ["target", "sink"] for agent in (*ORDINARY, "flood")}
    namespace = await system.namespace(agents, allow)
    async with (
        busy_worker(system, namespace),
        system.tenant(namespace) as tenant,
        auditor(system, namespace) as projector,
        callers(system, namespace, *ORDINARY) as ordinary,
    ):
        flood = flooder(tenant)
        ended = asyncio.Event()
        flooding = asyncio.create_task(flood.keep_sending(["sink"], FLOOD, ended))
        await asyncio.sleep(ALONE)
        alone = len(flood.accepted) / ALONE
        sending = [asyncio.create_task(caller.keep_sending(["target"], EACH, ended)) for caller in ordinary]
        lags = await sample_lag(projector, TOGETHER)
        together = (len(flood.accepted) - alone * ALONE) / TOGETHER
        ended.set()
        await asyncio.gather(flooding, *sending)
        missing_after = await completed(tenant, projector)
        decided = await decisions(projector.store)

    everyone = [flood, *ordinary]
    assert not any(caller.refused for caller in everyone), [caller.refused for caller in everyone]
    batches = Counter((entry["w"], entry["n"]) for entry in decided if entry["f"] == "flood")
    assert len({writer for writer, _ in batches}) == 1, "the flood was to reach one worker only"
    assert statistics.median(batches.values()) > MAX_BATCH / 2, sorted(batches.values())

    # The worker with the big batches goes on, and so does everybody else, all alike.
    assert together > alone / 5, f"the flood fell from {alone:.0f} to {together:.0f} messages/s"
    counts = [len(caller.accepted) for caller in ordinary]
    assert min(counts) > max(counts) / 2, f"some ordinary senders got less than half of others: {counts}"
    for caller in ordinary:
        # A call that falls to the busy worker waits as long as the flood itself, not longer.
        assert quantile(caller.latencies, 0.95) < 1.5 * quantile(flood.latencies, 0.95)
        assert statistics.median(caller.latencies) < statistics.median(flood.latencies)

    assert max(lags) < MAX_LAG, f"the audit lagged {max(lags):.1f} s"
    assert missing_after < COMPLETE_WITHIN, f"the audit was complete after {missing_after:.1f} s"
    lacking = {each for caller in everyone for each in caller.accepted} - {entry["id"] for entry in decided}
    assert not lacking, f"{len(lacking)} accepted messages have no decision in the audit"


def flooder(tenant: ResilientClient) -> Caller:
    """Sends as the agent ``flood``, to the busy worker only."""

    async def exchange(body: bytes, fields: dict[str, str]) -> bytes:
        answer = await tenant.request(subject("flood"), body, timeout=60, headers=fields)
        return answer.data

    return Caller(exchange)


@contextlib.asynccontextmanager
async def auditor(system: System, namespace: str) -> AsyncIterator[Projector]:
    """A projector that never projects: it only looks at how far the others are."""
    async with system.tenant(namespace) as nc, system.redis() as redis:
        yield Projector(namespace, nc, redis, system.material.worker.sealing.record_key)


async def sample_lag(projector: Projector, seconds: float) -> list[float]:
    """The age of the oldest record not projected yet, looked at again and again, in seconds."""
    clock = asyncio.get_running_loop().time
    end, ages = clock() + seconds, []
    while clock() < end:
        ages.append((await projector.lag()).age)
        await asyncio.sleep(0.1)
    return ages


async def completed(tenant: ResilientClient, projector: Projector) -> float:
    """Wait until every record written up to now is projected; how long that took, in seconds."""
    clock = asyncio.get_running_loop().time
    started = clock()
    last = await log.last_sequence(tenant)
    while True:
        head = await projector.store.head()
        page = await log.read(tenant, head.sequence + 1, most=1)
        if not page.messages or page.messages[0].sequence > last:
            return clock() - started
        assert clock() - started < 30, "the audit stands still"
        await asyncio.sleep(0.05)


async def decisions(store: Store) -> list[dict[str, object]]:
    """The decisions about messages in the audit."""
    entries = [stored.entry() async for stored in store.entries()]
    return [entry for entry in entries if entry["k"] == "d" and entry["o"] == "send"]


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie."""
    return sorted(values)[int(share * (len(values) - 1))]


# -- one offender ------------------------------------------------------------------------------------------

HONEST = ("h1", "h2", "h3")
IN_FLIGHT = 32  # for each honest sender
TARGETS = tuple(f"t{number}" for number in range(12))
OFFENCES_PER_SECOND = 200.0
OFFENCES_AT_ONCE = 16
ROOM = 20_000  # messages in an inbox: far more than an honest target gets in one round
DRAINED_PER_SECOND = 20.0
SETTLE, WINDOW = 0.1, 0.25  # seconds
FEWEST_IN_WINDOW = 100  # messages, however long that takes
BLOCKS, ROUNDS = 3, 7  # at most so many blocks of so many rounds for each offence
AT_LEAST = 0.9


@dataclass
class Traffic:
    """Honest senders that never pause, and one more sender whose conduct changes from window to window.

    The baseline is not silence but the same number of proper messages from an agent of its own: what any
    traffic costs is no offence.
    """

    honest: list[Caller]
    proper: Caller
    offender: Caller
    conduct: str = "proper"
    done: Counter[str] = field(default_factory=Counter)
    repeated: str = field(default_factory=new_message_id)
    fresh: list[str] = field(default_factory=list)  # ids sent once, by whichever worker
    turn: Iterator[int] = field(default_factory=itertools.count)

    async def act(self) -> None:
        """One message of the present conduct."""
        conduct = self.conduct
        await self.conducts[conduct]()
        self.done[conduct] += 1

    @property
    def conducts(self) -> dict[str, Callable[[], Awaitable[object]]]:
        return {
            "proper": lambda: self.proper.send("spare"),
            "same id, same content": lambda: self.offender.send("spare", message_id=self.repeated),
            "same id, other content": self._other_content,
            "every id twice": self._twice,
            "ids only another worker knows": self._old,
            "a full inbox": lambda: self.offender.send("full"),
            "a full inbox that is read slowly": lambda: self.offender.send("slow"),
        }

    async def _other_content(self) -> None:
        body = orjson.dumps({"n": next(self.turn), "text": "x" * 1000})
        await self.offender.send("spare", message_id=self.repeated, body=body)

    async def _twice(self) -> None:
        if next(self.turn) % 2:
            await self.offender.send("spare", message_id=self.fresh[-OFFENCES_AT_ONCE])
            return
        self.fresh.append(new_message_id())
        await self.offender.send("spare", message_id=self.fresh[-1])

    async def _old(self) -> None:
        await self.offender.send("spare", message_id=self.fresh[next(self.turn) % len(self.fresh)])

    async def prepare(self) -> None:
        """Ids that one worker took and the others have not seen."""
        self.fresh = [new_message_id() for _ in range(2000)]
        for some in range(0, len(self.fresh), 200):
            ids = self.fresh[some : some + 200]
            await asyncio.gather(*(self.offender.send("spare", message_id=each) for each in ids))

    async def rate(self, conduct: str) -> float:
        """What the honest senders got through during a window of ``conduct``, in messages a second."""
        self.conduct = conduct
        await asyncio.sleep(SETTLE)
        clock = asyncio.get_running_loop().time
        before, started = self._accepted(), clock()
        while clock() < started + WINDOW or self._accepted() < before + FEWEST_IN_WINDOW:
            await asyncio.sleep(0.05)
        return (self._accepted() - before) / (clock() - started)

    def _accepted(self) -> int:
        return sum(len(caller.accepted) for caller in self.honest)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_offender_costs_others_less_than_a_tenth(system: System) -> None:
    agents = [*HONEST, *TARGETS, "proper", "offender", "spare", "full", "slow"]
    allow = {agent: ["*"] for agent in (*HONEST, "proper", "offender")}
    namespace = await system.namespace(agents, allow, limits=Limits(inbox_messages=ROOM))
    async with (
        system.tenant(namespace) as tenant,
        callers(system, namespace, *HONEST, "proper", "offender") as opened,
    ):
        traffic = Traffic(opened[: len(HONEST)], *opened[len(HONEST) :])
        await traffic.prepare()
        await fill(tenant, "full", ROOM)
        await fill(tenant, "slow", ROOM)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as running:
            for caller in traffic.honest:
                running.create_task(caller.keep_sending(TARGETS, IN_FLIGHT, ended))
            running.create_task(at_rate(OFFENCES_PER_SECOND, OFFENCES_AT_ONCE, traffic.act, ended))
            running.create_task(read_slowly(tenant, "slow", ended))
            ratios = await measure(traffic, tenant)
            ended.set()

    assert not any(caller.refused for caller in traffic.honest)
    assert set(traffic.offender.refused) == {"ID_REUSED", "INBOX_FULL"}, traffic.offender.refused
    for conduct, found in ratios.items():
        left = f"{conduct}: {statistics.median(found):.2f} of the throughput was left"
        assert not surely_below(found, AT_LEAST), f"{left}, in {len(found)} rounds {sorted(found)}"


async def measure(traffic: Traffic, tenant: ResilientClient) -> dict[str, list[float]]:
    """The honest throughput under each offence, as a share of what it was just before and just after.

    An offence is tried again while its median is too low: noise goes away with more rounds, a cost stays.
    """
    ratios: dict[str, list[float]] = {conduct: [] for conduct in traffic.conducts if conduct != "proper"}
    for _ in range(BLOCKS):
        for conduct, found in ratios.items():
            if found and statistics.median(found) > AT_LEAST:
                continue
            traffic.repeated = new_message_id()
            for target in (*TARGETS, "spare"):
                await tenant.jetstream().purge_stream(subjects.INBOX_STREAM, subject=subjects.inbox(target))
            before = await traffic.rate("proper")
            for _ in range(ROUNDS):
                meanwhile = await traffic.rate(conduct)
                after = await traffic.rate("proper")
                found.append(2 * meanwhile / (before + after))
                before = after
    return ratios


def surely_below(ratios: list[float], bound: float) -> bool:
    """Whether the median of what ``ratios`` were drawn from is below ``bound``: a sign test at one percent.

    A busy machine makes the test blind rather than wrong.
    """
    count = len(ratios)
    below = sum(ratio < bound for ratio in ratios)
    chance = sum(math.comb(count, more) for more in range(below, count + 1)) / 2**count
    return chance < 0.01


async def fill(tenant: ResilientClient, agent: str, count: int) -> None:
    """Fill the inbox of ``agent`` to its limit, past the policy service: it is about being full."""
    for first in range(0, count, 1000):
        batch = new_message_id()
        last = min(first + 1000, count) - first
        for position in range(1, last):
            fields = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(position)}
            await tenant.publish(subjects.inbox(agent), b"{}", headers=fields)
        fields = {headers.BATCH_ID: batch, headers.BATCH_SEQUENCE: str(last), headers.BATCH_COMMIT: "1"}
        answer = await tenant.request(subjects.inbox(agent), b"{}", timeout=20, headers=fields)
        assert "error" not in orjson.loads(answer.data), answer.data


async def read_slowly(tenant: ResilientClient, agent: str, until: asyncio.Event) -> None:
    """Take messages of ``agent``, so that its full inbox has room for one more now and then."""
    subscription = await tenant.jetstream().pull_subscribe_bind(consumer=agent, stream=subjects.INBOX_STREAM)

    async def take() -> None:
        with contextlib.suppress(NothingThere):
            for message in await subscription.fetch(1, timeout=1):
                await message.ack()

    await at_rate(DRAINED_PER_SECOND, 1, take, until)
    await subscription.unsubscribe()
