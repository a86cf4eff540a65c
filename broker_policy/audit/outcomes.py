"""Outcomes that no record reports: messages that were handled, and decisions whose worker died.

Everything seen in NATS is confirmed by first projecting the log to its end: a worker writes its report
before it removes a message, so what is gone and not reported by then was handled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from nats.aio.client import Client

from broker_policy.audit import entry, log
from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.entry import WorkerEvent
from broker_policy.audit.handled import Handled
from broker_policy.audit.layout import id_place
from broker_policy.audit.memory import Memory, Remember
from broker_policy.audit.probe import Prober
from broker_policy.audit.projection import CLOCKS, Pending, decode_reports, early_field
from broker_policy.audit.record import Outcome, Report, Way
from broker_policy.audit.settled import FINAL_FOR_MESSAGE, Settled, append
from broker_policy.audit.tail import Tail
from broker_policy.tenants.streams import DEDUP_WINDOW
from mas_nats.wire.subjects import RELEASE, Op

SILENT = 15.0
"""Seconds without a record after which a writer that owes outcomes counts as dead."""
_SURELY_SILENT = 2.0  # the same for a writer whose worker's heartbeat is gone
OVERDUE = 60.0
"""Seconds after which an outcome is found out even if its writer lives."""
ASK_AGAIN_AFTER = 10.0
"""Seconds after which it is asked anew whether anything waits, though the chain has not grown."""
EARLY_FOR = 600.0
"""Seconds that a report waits for its decision."""
_PROBES = 256  # in one round
_MESSAGES = frozenset((Op.SEND, Op.REQUEST, RELEASE))
"""The calls that store a message under an id of its sender's."""
_OPEN = frozenset((" ", Outcome.UNKNOWN))
"""What a decision has as its outcome that may have stored its message."""
_TRIES = 3
"""How often the log is read where a copy of it lacks the newest."""


class Settler:
    """Finds the missing outcomes of one namespace.

    ``catch_up`` projects the log to its end, and notices where it was made anew: nothing that was seen of
    that one is about a decision of the one before. ``alive`` and ``remember`` as for the projector.
    """

    def __init__(
        self,
        tail: Tail,
        nc: Client,
        prober: Prober,
        catch_up: Callable[[], Awaitable[int]],
        *,
        alive: Callable[[str], bool | None] | None = None,
        remember: Remember | None = None,
    ) -> None:
        self._tail = tail
        self._nc = nc
        self._prober = prober
        self._catch_up = catch_up
        self._alive = alive or (lambda _: None)
        self._remember = remember
        self._layout = tail.store.layout
        self._handled = Handled(tail, nc)
        self._watching = tail.now()
        self._idle: tuple[Head, float] | None = None  # where the chain ended when nothing waited, and when

    def interrupted(self) -> None:
        """The log was out of sight: silence until now says nothing about anybody."""
        self._watching = self._tail.now()

    async def has_work(self) -> bool:
        """Whether any decision or report waits for an outcome. Errors as ``Projector.project_once``.

        Only a record makes one wait, so while the chain does not grow it is seldom asked anew.
        """
        await self._tail.refresh()
        head, now = self._tail.head, time.monotonic()
        if self._idle is not None and self._idle[0] == head and now - self._idle[1] < ASK_AGAIN_AFTER:
            return False
        layout = self._layout
        [there] = await self._tail.pipeline([("EXISTS", layout.opened, layout.unsettled, layout.early)])
        self._idle = None if there else (head, now)
        return bool(there)

    async def settle_once(self) -> int:
        """One look at everything; returns how many outcomes were found.

        Raises: as ``Projector.project_once``.
        """
        look = await self._handled.look()
        newest = await log.newest_record(self._nc)
        for _ in range(_TRIES):
            await self._catch_up()
            if self._tail.head.sequence >= newest:
                break
            await asyncio.sleep(log.BEHIND)  # read from a copy that is behind: what it lacks may matter
        else:
            return 0
        found = await self._handled.settle(look)
        found += await self._settle_dead()
        await self._expire_early()
        return found

    # -- the decisions of dead workers -----------------------------------------------------------------
    async def _settle_dead(self) -> int:
        [names] = await self._tail.pipeline([("SMEMBERS", self._layout.unsettled)])
        found = 0
        for name in sorted(names):
            found += await self._settle_writer(name.decode())
        return found

    async def _settle_writer(self, writer: str) -> int:
        await self._tail.refresh()
        [raw] = await self._tail.pipeline([("HGETALL", self._layout.pending(writer))])
        pending = decode_pending(raw)
        dead = self._is_dead(writer)
        overdue = self._tail.now() - OVERDUE * 1000
        due = {name: one for name, one in pending.items() if dead or max(one.time, self._watching) < overdue}
        if not pending:
            draft = self._tail.draft()
            draft.command("SREM", self._layout.unsettled, writer)
            await self._tail.append(draft)
        if not due:
            return 0
        portion = dict(islice(due.items(), _PROBES))
        answers = await self._answers(portion)
        draft, settled = self._tail.draft(), Settled()
        if dead and len(portion) == len(pending):
            self._add_lost(draft, writer)
        for name, one in portion.items():
            answer = answers[name]
            settled.add(one.index, answer.outcome, message=answer.sequence, reason=answer.reason)
            draft.command("HDEL", self._layout.pending(writer), name)
            if answer.outcome is Outcome.COMMITTED:
                await self._open(draft, settled, one, answer.sequence)
        return await append(self._tail, draft, settled)

    def _is_dead(self, writer: str) -> bool:
        state = self._tail.writers.get(writer)
        if state is None:
            return True  # closed, or forgotten with its records
        silent = (self._tail.now() - max(state.seen, self._watching)) / 1000
        return silent > (_SURELY_SILENT if self._alive(writer) is False else SILENT)

    def _add_lost(self, draft: Draft, writer: str) -> None:
        state = self._tail.writers.get(writer)
        draft.add(
            entry.worker(
                draft.next_index,
                draft.sequence,
                self._tail.now(),
                WorkerEvent.LOST,
                writer,
                state.number if state else 0,
            )
        )

    async def _answers(self, portion: dict[str, Pending]) -> dict[str, _Answer]:
        entries = await self._tail.store.entries_at([one.index for one in portion.values()])
        answers: dict[str, _Answer] = {}
        before = await self._memory() if any(one.way is Way.LONE for one in portion.values()) else None
        for name, one in portion.items():
            if one.way is not Way.LONE:
                answers[name] = _Answer(Outcome.UNKNOWN, reason="worker lost in the act")
                continue
            stored = entries.get(one.index)
            if stored is None:
                answers[name] = _Answer(Outcome.UNKNOWN, reason="decision not in the chain")
                continue
            if stored.entry()["o"] == RELEASE:  # no probe: it would take the id that the next release needs
                answers[name] = _Answer(Outcome.UNKNOWN, reason="worker lost, another releases it again")
                continue
            answers[name] = await self._probe(one, stored.entry(), name)
        if any(answer.since < math.inf for answer in answers.values()):
            known_from = self._known_from(before, await self._memory())
            for name, answer in answers.items():
                if answer.since / 1000 < known_from:
                    answers[name] = _Answer(Outcome.UNKNOWN, reason="asked when its id was forgotten")
        return answers

    async def _memory(self) -> Memory | None:
        return None if self._remember is None else await self._remember()

    def _known_from(self, before: Memory | None, after: Memory | None) -> float:
        """From when on (unix seconds) the server asked knows the ids of all that decisions have stored."""
        if before is None or after is None:
            return 0.0
        if before != after:  # another server leads: which of them was asked?
            return math.inf
        return max(after.since, self._tail.now() / 1000 - DEDUP_WINDOW) + CLOCKS / 1000

    async def _probe(self, one: Pending, decision: entry.Entry, name: str) -> _Answer:
        probed = await self._prober.probe(decision["f"], decision["id"], decision.get("l", ""))
        if not probed.sequence:
            return _Answer(Outcome.NOT_COMMITTED, since=one.time)
        if probed.audit == f"{decision['w']}.{name}":
            return _Answer(Outcome.COMMITTED, probed.sequence)
        if probed.sequence < decision["s"]:  # before its record: no message of this decision
            return _Answer(Outcome.DUPLICATE, probed.sequence)
        # What was stored later may be a second copy, of an id that had been forgotten.
        if probed.audit:
            return _Answer(Outcome.DUPLICATE, probed.sequence, since=one.time)
        return await self._whose(one, decision, probed.sequence)

    async def _whose(self, one: Pending, decision: entry.Entry, sequence: int) -> _Answer:
        """What becomes of a decision whose message was at ``sequence``, if it was not a repetition's.

        The message is gone, and with it the decision that it named. It was stored after its decision was.
        """
        shard, fragment = id_place(decision["id"])
        [raw] = await self._tail.pipeline([("HGETALL", self._layout.shard(shard))])
        others = [
            int(other)
            for other, found in pairs_of(raw)
            if found == fragment.encode() and int(other) != one.index
        ]
        entries = await self._tail.store.entries_at(others)
        letters = await self._tail.store.outcomes_at(others)
        stored = {Outcome.COMMITTED, Outcome.REDELIVERED, Outcome.HANDLED, Outcome.DEAD, Outcome.EXPIRED}
        answer = _Answer(Outcome.COMMITTED, sequence, since=one.time)
        for other, letter in zip(others, letters, strict=True):
            twin = entries[other].entry() if other in entries else {}
            if not all(twin.get(key) == decision.get(key) for key in ("id", "f", "l")):
                continue
            if twin["s"] > sequence or (twin["o"] not in _MESSAGES and twin["o"] != decision["o"]):
                continue
            if twin.get("q") == sequence:  # where its batch put it
                return _Answer(Outcome.DUPLICATE, sequence, since=one.time)
            if letter in stored:  # the twin's, unless its id was forgotten since, and this is a second copy
                first = twin["at"] if twin["s"] < decision["s"] else one.time
                answer = _Answer(Outcome.DUPLICATE, sequence, since=min(one.time, first))
            elif letter in _OPEN and answer.outcome is Outcome.COMMITTED:
                answer = _Answer(Outcome.UNKNOWN, sequence, "one of several decisions")
        return answer

    async def _open(self, draft: Draft, settled: Settled, one: Pending, sequence: int) -> None:
        """The message of ``one`` is at ``sequence``: follow it, with what was reported of it already."""
        field = early_field((one.agent, sequence))
        [raw] = await self._tail.pipeline([("HGET", self._layout.early, field)])
        final = False
        if raw is not None:
            draft.command("HDEL", self._layout.early, field)
            for report in decode_reports(raw):
                settled.add(one.index, report.outcome, reason=report.reason, attempt=report.attempt)
                final = final or report.outcome in FINAL_FOR_MESSAGE
        if not final:
            draft.command("ZADD", self._layout.open(one.agent), str(sequence), str(one.index))
            draft.command("SADD", self._layout.opened, one.agent)

    # -- reports that never found their decision --------------------------------------------------------
    async def _expire_early(self) -> None:
        await self._tail.refresh()
        [raw] = await self._tail.pipeline([("HGETALL", self._layout.early)])
        oldest = self._tail.now() - EARLY_FOR * 1000
        draft = self._tail.draft()
        for field, value in pairs_of(raw):
            reports = decode_reports(value)
            if reports[0].time > oldest:
                continue
            draft.command("HDEL", self._layout.early, field.decode())
            add_without_decision(draft, reports, self._tail.now())
        if draft.changes_something:
            await self._tail.append(draft)


def add_without_decision(draft: Draft, reports: Iterable[Report], now: int) -> None:
    """Add reports whose decision is not known. ``now`` is in unix milliseconds."""
    for report in reports:
        draft.add(
            entry.outcome(
                draft.next_index,
                draft.sequence,
                now,
                report.outcome,
                (),
                messages=(report.sequence,),
                reason=report.reason,
                attempt=report.attempt,
                agent=report.agent,
            )
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: Outcome
    sequence: int = 0
    reason: str = ""
    since: float = math.inf  # unix milliseconds: only true if the server has known all ids since then


def pairs_of(raw: object) -> list[tuple[bytes, bytes]]:
    """The pairs of a hash, whether the client has made a dict of them or not."""
    if isinstance(raw, dict):
        return list(raw.items())
    flat = list(raw) if isinstance(raw, list) else []
    return list(zip(flat[::2], flat[1::2], strict=True))


def decode_pending(raw: object) -> dict[str, Pending]:
    """A writer's decisions without an outcome, as they came from Redis, by record and position."""
    return {name.decode(): Pending.decode(value) for name, value in pairs_of(raw)}
