"""From the log into the chain: lazy, in the order of the log, exactly once (DESIGN 7).

Any number of projectors may run; an append holds only if the chain still ends where the projector read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import nats.errors
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from broker_policy.audit import log
from broker_policy.audit.complaint import complaint
from broker_policy.audit.lease import Lease, Leases
from broker_policy.audit.lost_log import begin_anew
from broker_policy.audit.memory import Remember
from broker_policy.audit.numbering import NO_END, Received, receive
from broker_policy.audit.outcomes import Settler
from broker_policy.audit.probe import Prober
from broker_policy.audit.projection import (
    Batch,
    Batched,
    DecisionName,
    Known,
    Pending,
    Projection,
    decode_reports,
    wanted,
)
from broker_policy.audit.record import NewerRecord, RecordKey
from broker_policy.audit.removal import Removal
from broker_policy.audit.state_marks import StateMark, state_agents
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken, Tail
from broker_policy.jetstream import JetStreamError
from mas_nats.wire.identity import agent_of

logger = logging.getLogger(__name__)

_TURN = 0.001
"""Seconds after which computing lets others have their turn."""
_T = TypeVar("_T")
RECORDS = 1000
"""Records read at once."""
PAGE = 2 << 20
"""Bytes of records read at once: decoded they take some ten times as much, and none is larger."""
DECISIONS = 500
"""Decisions appended at once: few enough that the event loop and Redis are never held up for long."""
SETTLE_EVERY = 0.7
LONGEST_INTERVAL = 1.5
"""Seconds between two looks at a log in which nothing happens; less than a lease holds."""
_SURE = 2.0
"""Seconds until a log that ends below what is projected is believed: its leader may lag behind a copy."""
ASK_EVERY = 1.0
"""Seconds after which a worker that does not project asks again whether it may."""
_TOGETHER = 0.2
"""Seconds within which those who have nothing to do ask for their leases together."""
REMOVE_EVERY = 1.0
_BY_NOW = 0.5
"""Seconds since the log was read for which its end counts as known: a writer may be taken for silent."""
_RESTART_CHECK_EVERY = 5.0
_REPEAT_ALARM = 60.0
_BACKOFF = (0.2, 5.0)  # seconds, first and longest
_NAMED = 10
"""Alarms in one line."""
_COMPLAINTS = 5
"""Different ones that are said until it projects again."""

AWAY = (RedisError, JetStreamError, nats.errors.Error, OSError, TimeoutError)
"""What is raised while Redis or NATS is away."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What of the log is not in the chain yet."""

    records: int
    age: float  # seconds, of the oldest


class Projector:
    """Projects the log of one namespace.

    ``nc`` is a connection inside the tenant account, ``redis`` must not decode responses, ``interval`` is
    how long it waits between looks at the log, in seconds. ``alive`` says of a writer whether its worker is
    known to live (None: not known); without it a writer counts as dead when it was silent for 15 seconds.
    ``remember`` says how far back the log knows message ids; without it, it is taken to know them all.
    ``leases`` are shared with the projectors of other namespaces.
    """

    def __init__(
        self,
        namespace: str,
        nc: Client,
        redis: Redis,
        record_key: RecordKey,
        *,
        interval: float = 0.3,
        clock: Callable[[], float] = time.time,
        alive: Callable[[str], bool | None] | None = None,
        remember: Remember | None = None,
        leases: Leases | None = None,
        name: str = "",
    ) -> None:
        self.namespace = namespace
        self.store = Store(redis, namespace, clock=clock)
        self._nc = nc
        self._key = record_key
        self._interval = interval
        self._clock = clock
        self._lease = Lease(leases or Leases(redis), self.store.layout.lease, name)
        self._tail = Tail(self.store, clock)
        prober = Prober(nc, namespace, record_key, clock=clock)
        self._settler = Settler(self._tail, nc, prober, self._reach_end, alive=alive, remember=remember)
        self._removal = Removal(nc, clock=clock)
        self._next: dict[str, float] = {}
        self._made = 0  # when the log was made that is projected, where Redis does not say; 0: not known

    # -- for ever ------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Project until cancelled. Nothing ends it: while Redis or NATS is away, records wait in the log."""
        pause, idle, leading, within = 0.0, self._interval, False, 0.0
        away: set[str] = set()  # what is wrong, as it was said
        try:
            while True:
                try:
                    if await self._lease.hold(within=within):
                        if not leading:
                            self._lead()
                        leading = True
                        found = await self._round()
                        idle = self._interval if found else min(idle * 1.25, LONGEST_INTERVAL)
                        pause, within = max(self._interval, idle), 0.0 if found else _TOGETHER
                    else:
                        leading = False
                        pause, within = max(self._interval, ASK_EVERY), _TOGETHER
                    if away:
                        away.clear()
                        logger.info("audit of %s: projecting again", self.namespace)
                except Overtaken:
                    self._forget_log()
                    pause = 0.05
                except AWAY as error:
                    leading = False
                    pause = min(2 * pause, _BACKOFF[1]) if away else _BACKOFF[0]
                    self._complain(error, away)
                except NewerRecord as newer:
                    leading = False
                    pause = _BACKOFF[1]
                    await self._leave_to_newer(newer)
                except Exception:  # it must not end unnoticed: no other projector would do better
                    leading = False
                    pause = _BACKOFF[1]
                    logger.exception("audit of %s: the projector failed, trying again", self.namespace)
                _raise_if_cancelled()
                await asyncio.sleep(pause)
        finally:
            with contextlib.suppress(*AWAY):
                await asyncio.shield(asyncio.wait_for(self._lease.give_up(), 1.0))

    def _complain(self, error: Exception, said: set[str]) -> None:
        """Say once what is wrong, and once more where it is something else by now."""
        kind = complaint(error) if isinstance(error, ResponseError) else type(error).__name__
        if kind not in said and len(said) < _COMPLAINTS:
            said.add(kind)
            logger.warning(
                "audit of %s: not projecting (%s); records wait in the log", self.namespace, complaint(error)
            )

    def _alarm(self, found: list[str]) -> None:
        """Say what is wrong with the log; the chain says it already."""
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            logger.critical(
                "ALARM: the log of %s is not what workers wrote, or Redis lost what is gone from it (%s%s)."
                " Run 'mas audit verify --namespace %s'",
                self.namespace,
                "; ".join(found[:_NAMED]),
                more,
                self.namespace,
            )

    async def _leave_to_newer(self, newer: NewerRecord) -> None:
        """Let a worker of a newer version project; say so once a minute while it goes on."""
        if self._due("newer", _REPEAT_ALARM):
            logger.critical(
                "audit of %s: a newer version wrote what this one does not know (%s). It is left to workers "
                "of that version; records wait in the log until one runs",
                self.namespace,
                newer,
            )
        with contextlib.suppress(*AWAY):
            await self._lease.give_up()

    def _lead(self) -> None:
        """Begin, or begin again: what was known may be out of date."""
        self._tail.forget()
        self._settler.interrupted()
        self._forget_log()

    def _forget_log(self) -> None:
        """Another projector may have begun with another log."""
        self._made = 0
        self._removal.forget()

    async def _round(self) -> int:
        """One look at everything; how many records were found."""
        found = await self.catch_up()
        if self._due("settle", SETTLE_EVERY) and await self._settler.has_work():
            await self._settler.settle_once()
        if self._due("remove", REMOVE_EVERY):
            await self._removal.remove(self._tail)
        return found

    def _due(self, what: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + every
        return True

    # -- once ----------------------------------------------------------------------------------------
    async def catch_up(self) -> int:
        """Project what is in the log by now; returns how many records there were.

        What is written meanwhile waits for the next time: each page costs much by itself.

        Raises:
            Overtaken: another projector took over.

        """
        found = 0
        while True:
            read = time.monotonic()
            page = await self._project_page()
            found += len(page.messages)
            if page.messages:
                _raise_if_cancelled()
                if not await self._lease.hold():
                    raise Overtaken
            if not page.pending and time.monotonic() - read < _BY_NOW:
                return found

    async def _reach_end(self) -> int:
        """``catch_up``, also of a log that was made anew: what was seen in it is not of the one before."""
        found = await self.catch_up()
        if await self._notice_restart():
            found += await self.catch_up()
        return found

    async def project_once(self) -> int:
        """Project one page of records; returns how many, 0 when there are none.

        Raises:
            NewerRecord: a worker of a newer version wrote the next record; what came before it is projected.
            Overtaken: another projector appended first; call again.
            redis.exceptions.RedisError, nats.errors.Error, JetStreamError, OSError, TimeoutError: Redis or
                NATS is away; call again.

        """
        return len((await self._project_page()).messages)

    async def _project_page(self) -> log.Page:
        await self._tail.refresh()
        self._made = self._tail.head.made or self._made
        page = await log.read(self._nc, self._tail.head.sequence + 1, most=RECORDS, max_bytes=PAGE)
        if not page.messages:
            if self._due("restart", _RESTART_CHECK_EVERY):
                await self._notice_restart()
            return page
        if await self._is_another():
            return await self._project_page()
        received, newer = await self._received(page.messages)
        if received and received[-1].end == NO_END:
            received[-1] = await self._ended(received[-1])
        for portion in _portions(iter(received)):
            known = await self._known(portion)
            projection = Projection(self._tail.draft(), self._tail.writers, known)
            async for record in _in_turns(portion):
                projection.take(record)
            projection.finish(self._tail.now())
            projection.draft.made = self._made
            await self._tail.append(projection.draft, projection.seen)
            self._alarm(projection.alarms)
            self._removal.projected(portion)
        if newer is not None:
            raise newer
        return page

    async def _received(self, messages: list[log.Stored]) -> tuple[list[Received], NewerRecord | None]:
        """The records up to the first that only a newer version can read."""
        received: list[Received] = []
        async for stored, following in _in_turns(zip(messages, [*messages[1:], None], strict=True)):
            try:
                received.append(receive(stored, self.namespace, self._key, following))
            except NewerRecord as newer:
                return received, newer
        return received, None

    async def _ended(self, last: Received) -> Received:
        """``last`` with where the log goes on behind it with something that did not go with it.

        A batch that was torn, by a power cut or a full disk, has less behind its record than that says.
        """
        if last.claimed == last.stored.sequence:
            return last
        if await log.last_sequence(self._nc) < last.claimed:
            await asyncio.sleep(log.BEHIND)  # of another node than that from which the record was read
            if (reached := await log.last_sequence(self._nc)) < last.claimed:
                return replace(last, end=reached + 1)
        for following in (await log.read(self._nc, last.stored.sequence + 1, most=1)).messages:
            return replace(last, end=following.sequence, following=following)
        return last

    async def settle_once(self) -> int:
        """Find outcomes that no record reports; returns how many were found. Errors as ``project_once``."""
        await self._tail.refresh()
        return await self._settler.settle_once()

    async def remove_projected(self) -> int:
        """Remove projected records from the log; returns how many. Errors as ``project_once``."""
        await self._tail.refresh()
        return await self._removal.remove(self._tail)

    async def at_rest(self) -> bool:
        """Whether the log is in the chain and no writer owes an outcome. Errors as ``project_once``."""
        store = self.store
        return not (await self.lag()).records and not await store.redis.exists(store.layout.unsettled)

    async def lag(self) -> Lag:
        """What of the log is not in the chain yet. Errors as ``project_once``."""
        head = await self.store.head()
        page = await log.read(self._nc, head.sequence + 1, most=1)
        if not page.messages:
            return Lag(0, 0.0)
        age = self._clock() - page.messages[0].time / 1000
        return Lag(1 + page.pending, max(age, 0.0))

    async def _known(self, portion: list[Received]) -> Known:
        names_of_decisions, names_of_messages = wanted(portion)
        agents = sorted(state_agents(portion))
        if not names_of_decisions and not names_of_messages and not agents:
            return Known()
        decisions, messages = sorted(names_of_decisions), sorted(names_of_messages)
        layout = self.store.layout
        rows = await self._tail.pipeline(
            [
                *(("HGET", layout.pending(writer), f"{n}.{place}") for writer, n, place in decisions),
                *(("ZRANGEBYSCORE", layout.open(agent), seq, seq) for agent, seq in messages),
                *(("HGET", layout.states, agent) for agent in agents),
                ("HVALS", layout.early),
            ]
        )
        known = Known()
        for name, raw in zip(decisions, rows, strict=False):
            if raw is not None:
                known.pending[name] = Pending.decode(raw)
        known.batched = await self._batched([name for name in decisions if name not in known.pending])
        for message, members in zip(messages, rows[len(decisions) :], strict=False):
            if members:
                known.open[message] = list(map(int, members))
        for name, batched in known.batched.items():
            logger.info("decision %s.%d.%d of a torn batch is settled singly", *name)
            followed = known.open.setdefault((batched.agent, batched.sequence), [])
            if batched.index not in followed:
                followed.append(batched.index)
        for agent, raw in zip(agents, rows[len(decisions) + len(messages) :], strict=False):
            if raw is not None:
                known.states[agent] = StateMark.decode(raw)
        for raw in rows[-1]:
            reports = decode_reports(raw)
            known.early[reports[0].agent, reports[0].sequence] = reports
        return known

    async def _batched(self, names: list[DecisionName]) -> dict[DecisionName, Batched]:
        """Those decisions that went with their writer's last batch, and whose message is open."""
        writers = sorted({writer for writer, _, _ in names})
        if not writers:
            return {}
        [raw] = await self._tail.pipeline([("HMGET", self.store.layout.batches, *writers)])
        batches = {
            writer: Batch.decode(found)
            for writer, found in zip(writers, raw, strict=True)
            if found is not None
        }
        indexes = {
            name: batches[name[0]].first + name[2]
            for name in names
            if name[0] in batches and batches[name[0]].number == name[1]
        }
        found = await self.store.entries_at(list(indexes.values()))
        decisions = {name: found[index].entry() for name, index in indexes.items() if index in found}
        batched = {
            name: Batched(indexes[name], agent_of(decision["t"]), decision["q"])
            for name, decision in decisions.items()
            if "q" in decision
        }
        open_ = await self._tail.pipeline(
            [("ZSCORE", self.store.layout.open(one.agent), str(one.index)) for one in batched.values()]
        )
        return {name: one for (name, one), score in zip(batched.items(), open_, strict=True) if score}

    async def _is_another(self) -> bool:
        """Whether what was read is of another log than what is projected; that one is begun then."""
        return (await log.end(self._nc)).made != self._made and await self._notice_restart()

    async def _notice_restart(self) -> bool:
        """A log that ends below what is projected was made anew: say so, and project it from its start.

        So was one that was made at another time than the one that is projected, however long it is.
        """
        end = await log.end(self._nc)
        self._made = self._tail.head.made or self._made
        if self._made in (0, end.made):
            self._made = end.made
            if end.sequence >= self._tail.head.sequence:
                return False
            # A copy may have given out a record that the leader, which is asked here, has not applied yet.
            await asyncio.sleep(_SURE)
            end = await log.end(self._nc)
            if end.made == self._made and end.sequence >= self._tail.head.sequence:
                return False
        before = self._tail.head.sequence
        await begin_anew(self._tail, end)
        self._alarm([f"it was lost or cut off: it was projected up to {before}, and ends at {end.sequence}"])
        self._made = end.made
        self._removal.forget()
        return True


async def _in_turns(items: Iterable[_T]) -> AsyncIterator[_T]:
    """The items, with turns for others between them: calls wait for their verdicts in the same loop."""
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > _TURN:
            await asyncio.sleep(0)
            begun = time.perf_counter()


def _raise_if_cancelled() -> None:
    """A request's ``wait_for`` can swallow a cancellation that comes together with its answer."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _portions(received: Iterator[Received]) -> Iterator[list[Received]]:
    portion: list[Received] = []
    decisions = 0
    for one in received:
        portion.append(one)
        decisions += len(one.record.decisions) if one.record is not None else 0
        if decisions >= DECISIONS:
            yield portion
            portion, decisions = [], 0
    if portion:
        yield portion
