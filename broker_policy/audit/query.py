"""Asking the audit: by sender, target, decision, violation or message id, newest first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from broker_policy.audit.entry import Entry
from broker_policy.audit.layout import id_place
from broker_policy.audit.store import Store

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Question:
    """What decisions to list; None means any."""

    sender: str | None = None
    target: str | None = None
    decision: str | None = None
    violation: str | None = None  # the rule that refused
    message_id: str | None = None

    def indexes(self) -> list[str]:
        """The names of the indexes that list them."""
        named = {
            "sender": self.sender,
            "target": self.target,
            "decision": self.decision,
            "violation": self.violation,
        }
        return [f"{name}:{value}" for name, value in named.items() if value is not None]

    def matches(self, entry: Entry) -> bool:
        """Whether a decision's entry is wanted; an index alone is never believed."""
        wanted = {"f": self.sender, "t": self.target, "d": self.decision, "id": self.message_id}
        if any(value is not None and entry.get(key) != value for key, value in wanted.items()):
            return False
        return self.violation is None or self.violation in (entry["r"], entry["d"])


@dataclass(frozen=True, slots=True)
class Answer:
    """One decision and what became of it."""

    index: int
    entry: Entry
    outcome: str  # a letter of record.Outcome, " " when it is not known yet
    hash: str

    def row(self) -> dict[str, Any]:
        """As JSON, with names that a person understands."""
        entry = self.entry
        return {
            "index": self.index,
            "time": entry["at"],
            "message_id": entry["id"],
            "op": entry["o"],
            "sender": entry["f"],
            "target": entry["t"],
            "type": entry["y"],
            "size": entry["z"],
            "decision": entry["d"],
            "rule": entry["r"],
            "outcome": OUTCOME_NAMES.get(self.outcome, self.outcome),
            "policy_revision": entry["v"],
            "writer": entry["w"],
            "record": entry["n"],
            "position": entry["p"],
            "log_sequence": entry["s"],
            "commitment": entry.get("c", ""),
            "certificate": entry.get("x", ""),
            "by": entry.get("b", ""),
            "dead_letter": entry.get("l", ""),
            "marked": entry.get("m", ""),
            "hash": self.hash,
        }


OUTCOME_NAMES = {
    " ": "unsettled",
    "r": "refused",
    "c": "committed",
    "n": "not_committed",
    "a": "applied",
    "f": "failed",
    "u": "duplicate",
    "v": "redelivered",
    "h": "handled",
    "d": "dead",
    "x": "expired",
    "?": "unknown",
}


async def ask(store: Store, question: Question, *, limit: int = 100) -> list[Answer]:
    """Up to ``limit`` decisions, the newest first.

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    found: list[Answer] = []
    async for indexes in _candidates(store, question):
        entries = await store.entries_at(indexes)
        letters = dict(zip(indexes, await store.outcomes_at(indexes), strict=True))
        for index in indexes:
            stored = entries.get(index)
            if stored is None:
                continue
            entry = stored.entry()
            if entry["k"] == "d" and question.matches(entry):
                found.append(Answer(index, entry, letters[index], stored.hash))
                if len(found) == limit:
                    return found
    return found


async def _candidates(store: Store, question: Question) -> AsyncIterator[list[int]]:
    """Pages of entry indexes among which all answers are, descending."""
    if question.message_id is not None:
        shard, fragment = id_place(question.message_id)
        row: dict[bytes, bytes] = await store.redis.hgetall(store.layout.shard(shard))
        yield sorted((int(index) for index, of in row.items() if of.decode() == fragment), reverse=True)
        return
    names = question.indexes()
    if not names:
        last = (await store.head()).index
        while last > 0:
            first = max(last - _PAGE + 1, 1)
            yield list(range(last, first - 1, -1))
            last = first - 1
        return
    sizes = [(await store.redis.llen(store.layout.by(name)), name) for name in names]
    size, name = min(sizes)
    while size > 0:
        first = max(size - _PAGE, 0)
        page = await store.redis.lrange(store.layout.by(name), first, size - 1)
        yield [int(index) for index in reversed(page)]
        size = first
