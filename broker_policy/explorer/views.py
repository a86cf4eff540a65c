"""The documents of ``/api``, but for that of one message: overview, topology, agents, dead letters, audit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import nats.errors
import orjson

from broker_policy.audit.checkpoint import SignedCheckpoint
from broker_policy.audit.query import Question, search
from broker_policy.audit.verify import verify
from broker_policy.cli.audit_question import question as asked_by
from broker_policy.dead_letters import letters as stored
from broker_policy.dead_letters.letters import Wanted
from broker_policy.explorer.feed import WINDOW, Feed, Kind, described
from broker_policy.explorer.looks import Looks
from broker_policy.explorer.sources import WRITABLE, WRITABLE_FIX, Sources
from broker_policy.jetstream import JetStreamError, StoredMessage, direct_get_page, get_last
from broker_policy.printable import printable
from mas_nats.errors import MasError, error_of
from mas_nats.wire import subjects
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Decision, Verdict

MOST = 200
"""Rows of one answer at most."""
PATIENCE = 0.1
"""Seconds for which a search walks through the audit, where nobody says otherwise."""
LONGEST = 10.0
"""Seconds for which it walks at most, whoever asks."""
_ANSWER = 5.0
_ANSWER_FRESH = 1.0
"""Seconds for which an answer of a worker serves: however many pages are open, none is asked more often."""
_BACK = 4
"""Checkpoints of all namespaces looked at at first, for each that is wanted."""
_EDGES = 500
"""Edges of the graph at most, the busiest first."""
ELSEWHERE = "(no agent here)"
"""Stands in the graph for targets that are not agents of the namespace: anybody can make such names up."""

Document = dict[str, Any]


class Views:
    """Makes the documents. ``clock`` returns unix seconds."""

    def __init__(
        self, sources: Sources, feed: Feed, looks: Looks, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.sources = sources
        self.feed = feed
        self.looks = looks
        self._clock = clock
        self._answers: dict[AdminOp, tuple[float, Verdict]] = {}
        self._verifying: asyncio.Task[Document] | None = None

    async def overview(self) -> Document:
        """Health, rates, what was decided and why something was refused."""
        signed = await self._last_checkpoint()  # before the chain's end: that only grows meanwhile
        found, circuits, head, totals = await asyncio.gather(
            self.looks.rows(), self.circuits(), self._head(), self._totals(), return_exceptions=True
        )
        now = None if isinstance(found, BaseException) else await self.looks.current()
        workers = len(now.tallies) if now else 0
        counted = self.feed.counted()
        refused = sum(count for (_, _, refuses), count in counted.items() if refuses)
        health = [
            _state("NATS", found, "the streams of the namespace answer"),
            _state("Redis", head, "the audit can be read"),
            {
                "name": "Policy",
                "ok": workers > 0,
                "text": f"{workers} workers answer"
                if workers
                else "no policy worker answers: start one, or look into its log",
            },
            self._signed(head, signed),
            _open_circuits(circuits),
        ]
        rows = [] if isinstance(found, BaseException) else found
        return {
            "namespace": self.sources.namespace,
            "time": self._now(),
            "health": health,
            "notices": [{"text": WRITABLE, "fix": WRITABLE_FIX}] if self.sources.may_write else [],
            "workers": workers,
            "agents": len(rows),
            "alive": sum(row.instances > 0 for row in rows),
            "pending": sum(row.pending for row in rows),
            "in_flight": sum(row.in_flight for row in rows),
            "dead_letters": sum(row.dead_letters for row in rows),
            "window": WINDOW,
            "per_second": self.feed.per_second(),
            "accepted": counted.total() - refused,
            "refused": refused,
            "decisions": {} if isinstance(totals, BaseException) else totals,
            "refusals": _reasons(counted),
            "latest_refusals": [row for row in reversed(self.feed.kept()) if row["refused"]][:5],
            "entries": 0 if isinstance(head, BaseException) else head,
        }

    async def topology(self) -> Document:
        """Agents, and who sent to whom; rates are of the last minute."""
        rows = await self.looks.rows()
        circuits = {each["agent"]: each["state"] for each in await self.circuits()}
        known = {row.agent for row in rows}
        since = (self._clock() - WINDOW) * 1000
        edges: dict[tuple[str, str], Document] = {}
        for row in self.feed.kept():
            if row["op"] not in ("send", "request", "reply", "delay", "release"):
                continue
            sender, target = (_node(row[name], known) for name in ("sender", "target"))
            edge = edges.setdefault(
                (sender, target), {"from": sender, "to": target, "count": 0, "refused": 0, "last": 0}
            )
            edge["last"] = max(edge["last"], row["time"])
            if row["time"] >= since:
                edge["refused" if row["refused"] else "count"] += 1
        busiest = sorted(edges.values(), key=lambda each: (-each["count"] - each["refused"], -each["last"]))
        for edge in (shown := busiest[:_EDGES]):
            edge["rate"] = round(edge["count"] / WINDOW, 3)
            edge["circuit"] = circuits.get(edge["to"], "closed")
        names = known | {name for pair in edges for name in pair}
        of = {row.agent: row for row in rows}
        nodes = [
            {
                "name": name,
                "kind": "agent" if name in known else "other" if name == ELSEWHERE else "namespace",
                "instances": of[name].instances if name in of else 0,
                "pending": of[name].pending if name in of else 0,
                "dead_letters": of[name].dead_letters if name in of else 0,
                "circuit": circuits.get(name, "closed"),
            }
            for name in sorted(names)
        ]
        return {
            "namespace": self.sources.namespace,
            "window": WINDOW,
            "nodes": nodes,
            "edges": shown,
            "more_edges": len(edges) - len(shown),
        }

    async def agents(self) -> Document:
        """What each agent has: instances with their capabilities, rates, messages, its circuit, its state."""
        rows, circuits, revisions = await asyncio.gather(self.looks.rows(), self.circuits(), self.revisions())
        announced = _instances((await self.looks.current()).announced)
        states = {each["agent"]: each["state"] for each in circuits}
        last: dict[str, int] = {}
        for row in self.feed.kept():
            last[row["sender"]] = row["time"]
        agents = [
            {
                **asdict(row),
                "circuit": states.get(row.agent, "closed"),
                "state_revision": None if revisions is None else revisions.get(row.agent, 0),
                "last_decision": last.get(row.agent),
                "running": announced.get(row.agent, []),
            }
            for row in sorted(rows, key=lambda each: each.agent)
        ]
        return {"namespace": self.sources.namespace, "agents": agents}

    async def dead_letters(self, wanted: Wanted, limit: int) -> Document:
        """Dead letters, the oldest first, without their bodies."""
        found: list[Document] = []
        more = False
        async for letter in stored.letters(self.sources.tenant, wanted):
            if len(found) == limit:
                more = True
                break
            row = letter.row()
            found.append({**row, "error": printable(row["error"], 500)})
        following = found[-1]["sequence"] if more else None
        return {"namespace": self.sources.namespace, "dead_letters": found, "next": following}

    async def decisions(
        self, question: Question, limit: int, cursor: int | None, within: float = PATIENCE
    ) -> Document:
        """Decisions that are asked for, the newest first: what is found in ``within`` seconds of walking."""
        store = self.sources.store
        found = await search(store, question, limit=limit, cursor=cursor, within=within)
        return {
            "namespace": self.sources.namespace,
            "decisions": [described(each) for each in found.answers],
            "complete": found.looked_to is None,
            "looked_to": None if found.looked_to is None else await self._moment(found.looked_to),
            "next": found.following,
            "removed": (await store.removed()).index,
        }

    async def verification(self) -> Document:
        """Verify the whole audit, as ``mas audit verify`` does; who asks meanwhile gets the same answer."""
        if self._verifying is None or self._verifying.done():
            self._verifying = asyncio.create_task(self._verify())
        return await asyncio.shield(self._verifying)

    async def checkpoints(self, limit: int) -> Document:
        """The newest checkpoints, and whether a key of this installation signed each."""
        keys = self.sources.checkpoint_keys
        found = await self.newest_checkpoints(limit)
        rows = [
            {
                "index": each.checkpoint.index,
                "hash": each.checkpoint.hash,
                "log_sequence": each.checkpoint.sequence,
                "time": each.checkpoint.time,
                "key": each.key,
                "valid": keys.signed(each),
                "accepted_loss": each.checkpoint.lost.reason if each.checkpoint.lost else "",
            }
            for each in reversed(found)
        ]
        return {"namespace": self.sources.namespace, "checkpoints": rows}

    async def newest_checkpoints(self, limit: int) -> list[SignedCheckpoint]:
        """The newest, oldest first, their signatures not checked.

        They are looked for backwards, since other namespaces have theirs in between.
        """
        nc, subject = self.sources.control, subjects.checkpoint(self.sources.namespace)
        newest = await get_last(nc, subjects.CHECKPOINTS_STREAM, subject)
        if newest is None:
            return []
        span = _BACK * limit
        while True:
            first = max(newest.sequence - span + 1, 1)
            found: list[SignedCheckpoint] = []
            at = first
            while at <= newest.sequence:
                page = await direct_get_page(nc, subjects.CHECKPOINTS_STREAM, subject, at)
                if not page:
                    break
                found += [SignedCheckpoint.decode(each.data) for each in page]
                at = page[-1].sequence + 1
            if len(found) >= limit or first == 1:
                return found[-limit:]
            span *= 4

    async def circuits(self) -> list[Document]:
        """The circuits that are not closed, as a worker knows them; none where no worker answers."""
        verdict = await self._asked(AdminOp.CIRCUITS)
        if verdict is None:
            return []
        if not verdict.ok:
            raise error_of(verdict)
        return list(verdict.result["circuits"])

    async def revisions(self) -> dict[str, int] | None:
        """At which revision the state of each agent is that has one.

        None: no worker says it, since none answers, or all are of an older version.
        """
        verdict = await self._asked(AdminOp.REVISIONS)
        return dict(verdict.result["revisions"]) if verdict is not None and verdict.ok else None

    async def _asked(self, op: AdminOp) -> Verdict | None:
        """What a worker says, at most a second ago; None where none answers."""
        at, answer = self._answers.get(op, (-1e9, None))
        if time.monotonic() - at < _ANSWER_FRESH:
            return answer
        question = orjson.dumps({"by": "explorer"})
        try:
            said = await self.sources.tenant.request(subjects.admin(op), question, timeout=_ANSWER)
        except nats.errors.Error:
            return None
        verdict = Verdict.decode(said.data)
        self._answers[op] = time.monotonic(), verdict
        return verdict

    # -- parts ---------------------------------------------------------------------------------------
    async def _verify(self) -> Document:
        began = time.monotonic()
        keys = self.sources.checkpoint_keys
        report = await verify(self.sources.store, self.sources.checkpoints.standing(keys), keys)
        return {**report.document(), "seconds": round(time.monotonic() - began, 2), "time": self._now()}

    async def _moment(self, index: int) -> Document:
        """An entry and its time; None where it is damaged."""
        stored = (await self.sources.store.entries_at([index])).get(index)
        try:
            made = stored.entry().get("at") if stored else None
        except ValueError:
            made = None
        return {"index": index, "time": made}

    async def _head(self) -> int:
        return (await self.sources.store.head()).index

    async def _totals(self) -> dict[str, int]:
        store = self.sources.store
        async with store.redis.pipeline(transaction=False) as pipe:
            for decision in Decision:
                pipe.llen(store.layout.by(f"decision:{decision}"))
            counts = await pipe.execute()
        return {str(name): count for name, count in zip(Decision, counts, strict=True) if count}

    async def _last_checkpoint(self) -> SignedCheckpoint | BaseException | None:
        try:
            return (await self.sources.checkpoints.last())[0]
        except (nats.errors.Error, JetStreamError, ValueError) as error:
            return error

    def _signed(self, head: int | BaseException, last: SignedCheckpoint | BaseException | None) -> Document:
        if isinstance(last, BaseException):
            return {
                "name": "Signer",
                "ok": False,
                "text": f"no checkpoint can be read ({type(last).__name__})",
            }
        if last is None:
            empty = head == 0
            return {
                "name": "Signer",
                "ok": empty,
                "text": "nothing to sign yet" if empty else "no checkpoint yet: look whether the signer runs",
            }
        if isinstance(head, int) and head < last.checkpoint.index:
            text = f"entry {last.checkpoint.index} was signed, but the chain ends at {head}: mas audit verify"
            return {"name": "Signer", "ok": False, "text": text}
        age = max(self._clock() - last.checkpoint.time / 1000, 0)
        behind = 0 if isinstance(head, BaseException) else max(head - last.checkpoint.index, 0)
        text = f"signed up to entry {last.checkpoint.index}"
        late = bool(behind) and age > _LATE
        if late:
            text += f", {behind} entries since, for {age:.0f} s: look into the signer's log"
        return {"name": "Signer", "ok": not late, "text": text}

    def _now(self) -> int:
        return int(self._clock() * 1000)


_LATE = 120.0
"""Seconds after which an entry without a checkpoint is worth a look."""


_FIELDS = ("sender", "target", "decision", "violation", "outcome", "message_id", "from", "to")


def question(fields: dict[str, str]) -> Question:
    """What the fields of an address ask for.

    Raises:
        ConfigurationError: a time, a decision or an outcome is none.

    """
    return asked_by(*(fields.get(name) or None for name in _FIELDS))


def _instances(announced: list[StoredMessage]) -> dict[str, list[Document]]:
    """What each instance said of itself, by its agent."""
    found: dict[str, list[Document]] = {}
    for each in announced:
        agent, instance = each.subject.split(".")[2:4]
        try:
            told = orjson.loads(each.data)
        except ValueError:
            continue
        if isinstance(told, dict):
            seen = each.headers.get("Nats-Time-Stamp", "")
            capabilities = [str(name) for name in told.get("capabilities", ())]
            found.setdefault(agent, []).append(
                {"instance": instance, "capabilities": capabilities, "seen": seen}
            )
    return found


def _node(name: str, known: set[str]) -> str:
    return name if name in known or "/" in name else ELSEWHERE


def _reasons(counted: Counter[Kind]) -> list[Document]:
    refusing = Counter({kind[:2]: count for kind, count in counted.items() if kind[2]})
    return [
        {"decision": decision, "rule": rule, "count": count}
        for (decision, rule), count in refusing.most_common(10)
    ]


def _state(name: str, found: object, well: str) -> Document:
    if isinstance(found, MasError):
        return {"name": name, "ok": False, "text": str(found)}
    if isinstance(found, BaseException):
        return {"name": name, "ok": False, "text": f"{name} does not answer ({type(found).__name__})"}
    return {"name": name, "ok": True, "text": well}


def _open_circuits(found: list[Document] | BaseException) -> Document:
    if isinstance(found, BaseException):
        return _state("Circuits", found, "")
    names = ", ".join(each["agent"] for each in found[:5])
    return {"name": "Circuits", "ok": not found, "text": f"not closed: {names}" if found else "all closed"}
