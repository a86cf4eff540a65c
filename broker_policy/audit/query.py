"""Asking the audit: by sender, target, decision, violation, outcome, time, message id, in any combination."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from broker_policy.audit import candidates
from broker_policy.audit.candidates import NEWEST_FIRST, OLDEST_FIRST, Page, Span
from broker_policy.audit.entry import Entry, agent_names, index_names
from broker_policy.audit.segments import Past
from broker_policy.audit.store import Store, StoredEntry
from broker_policy.audit.time_span import span_of

_PAGES = (200, 1000)
"""Entries read at once, at first and at most."""
_FEW = 20


@dataclass(frozen=True, slots=True)
class Question:
    """What decisions to list; None means any."""

    sender: str | None = None
    target: str | None = None
    decision: str | None = None
    violation: str | None = None  # the rule that refused, or "dlp:" with types that were found
    message_id: str | None = None
    outcome: str | None = None  # a letter of record.Outcome, " " for those without one
    since: int | None = None  # unix milliseconds, included
    until: int | None = None  # unix milliseconds, included

    def indexes(self) -> list[str]:
        """The names of the indexes that list them all; a sender or target that is no id stands in none."""
        return [
            *(agent_names("sender", self.sender) if self.sender is not None else ()),
            *(agent_names("target", self.target) if self.target is not None else ()),
            *((f"decision:{self.decision}",) if self.decision is not None else ()),
            *self._violations(),
        ]

    def _violations(self) -> list[str]:
        if self.violation is None:
            return []
        if not self.violation.startswith("dlp:"):
            return [f"violation:{self.violation}"]
        return [f"violation:dlp:{each}" for each in self.violation.removeprefix("dlp:").split(",")]

    def matches(self, entry: Entry) -> bool:
        """Whether a decision's entry is wanted; an index alone is never believed."""
        wanted = {"f": self.sender, "t": self.target, "d": self.decision, "id": self.message_id}
        if any(value is not None and entry.get(key) != value for key, value in wanted.items()):
            return False
        if self.since is not None and entry["at"] < self.since:
            return False
        if self.until is not None and entry["at"] > self.until:
            return False
        return self.violation is None or set(self._violations()) <= set(index_names(entry))


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
OUTCOME_LETTERS = {name: letter for letter, name in OUTCOME_NAMES.items()}


async def ask(
    store: Store,
    question: Question,
    *,
    limit: int = 100,
    cursor: int | None = None,
    oldest_first: bool = False,
    past: Past | None = None,
) -> list[Answer]:
    """Up to ``limit`` decisions, the newest first; with ``cursor`` those that come after that index.

    What left Redis is looked for in ``past``, else not at all.

    Raises:
        SegmentBroken: a segment is missing or altered.
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    found: list[Answer] = []
    async with aclosing(
        answers(store, question, cursor=cursor, oldest_first=oldest_first, past=past, expected=limit)
    ) as all_of_them:
        async for answer in all_of_them:
            found.append(answer)
            if len(found) == limit:
                break
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    ``following``: the cursor with which to go on, None when there is nothing more. ``looked_to``: the index
    of the entry up to which it looked, where its time was over before it knew all; else None.
    """

    answers: list[Answer]
    following: int | None
    looked_to: int | None


async def search(
    store: Store,
    question: Question,
    *,
    limit: int,
    within: float,
    cursor: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Like ``ask``, the newest first and in Redis only, but it walks no longer than ``within`` seconds.

    That is looked at between two steps, each of which is some hundred entries of an index or of the chain.
    One is always made, so whoever goes on with ``following`` comes to the end. ``clock`` is in seconds.

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    deadline = clock() + within
    span, _ = await _spans(store, cursor, NEWEST_FIRST)
    span = await span_of(store, span, question.since, question.until)
    found: list[Answer] = []
    async with aclosing(_steps(store, question, span, NEWEST_FIRST, limit)) as steps:
        async for step in steps:
            found += step.answers
            if len(found) >= limit:
                return Found(found[:limit], found[limit - 1].index, None)
            if clock() >= deadline and step.reached > span.first:
                return Found(found, step.reached, step.reached)
    return Found(found, None, None)


async def answers(
    store: Store,
    question: Question,
    *,
    cursor: int | None = None,
    oldest_first: bool = False,
    past: Past | None = None,
    expected: int = _PAGES[1],
) -> AsyncGenerator[Answer, None]:
    """Every decision that is asked for, read in pages; ``expected``: how many the caller may take.

    Raises:
        SegmentBroken: a segment is missing or altered.
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    sign = OLDEST_FIRST if oldest_first else NEWEST_FIRST
    span, gone = await _spans(store, cursor, sign)
    if oldest_first:
        async for answer in _sealed(store, question, past, gone, sign):
            yield answer
    span = await span_of(store, span, question.since, question.until)
    async for step in _steps(store, question, span, sign, expected):
        for answer in step.answers:
            yield answer
    if not oldest_first:
        async for answer in _sealed(store, question, past, gone, sign):
            yield answer


async def _spans(store: Store, cursor: int | None, sign: int) -> tuple[Span, Span]:
    """What is in Redis and what left it, of what comes after ``cursor``."""
    removed = (await store.removed()).index
    span, gone = Span(removed + 1, (await store.head()).index), Span(1, removed)
    if cursor is None:
        return span, gone
    return span.beyond(cursor, sign), gone.beyond(cursor, sign)


@dataclass(frozen=True, slots=True)
class _Step:
    """The answers between the place that the step before reached and this one's."""

    answers: list[Answer]
    reached: int


async def _steps(
    store: Store, question: Question, span: Span, sign: int, expected: int
) -> AsyncGenerator[_Step, None]:
    size = max(min(expected, _PAGES[0]), _FEW)
    async for page in _candidates(store, question, span, sign):
        place = 0
        while place < len(page.indexes):
            portion = page.indexes[place : place + size]
            place += size
            reached = portion[-1] if place < len(page.indexes) else page.reached
            yield _Step(await _read(store, question, portion), reached)
            size = min(2 * size, _PAGES[1])
        if not page.indexes:
            yield _Step([], page.reached)


async def _sealed(
    store: Store, question: Question, past: Past | None, span: Span, sign: int
) -> AsyncIterator[Answer]:
    """Answers among what left Redis; a segment has no indexes, so each whose time fits is read whole."""
    if past is None:
        return
    for seal in past.overlapping(span.first, span.last, question.since, question.until)[::sign]:
        entries = {row.index: row for row in past.segments.read(seal) if span.first <= row.index <= span.last}
        for answer in await _fitting(store, question, entries, sorted(entries)[::sign]):
            yield answer


async def _read(store: Store, question: Question, indexes: list[int]) -> list[Answer]:
    """The answers among ``indexes``; an index alone is never believed."""
    return await _fitting(store, question, await store.entries_at(indexes), indexes)


async def _fitting(
    store: Store, question: Question, entries: dict[int, StoredEntry], indexes: list[int]
) -> list[Answer]:
    fitting: list[tuple[StoredEntry, Entry]] = []
    for index in indexes:
        if (stored := entries.get(index)) is None:
            continue
        entry = stored.entry()
        if entry["k"] == "d" and question.matches(entry):
            fitting.append((stored, entry))
    letters = await store.outcomes_at([stored.index for stored, _ in fitting])
    return [
        Answer(stored.index, entry, letter, stored.hash)
        for (stored, entry), letter in zip(fitting, letters, strict=True)
        if question.outcome in (None, letter)
    ]


async def _candidates(store: Store, question: Question, span: Span, sign: int) -> AsyncIterator[Page]:
    """Pages of entry indexes among which all answers are, in their order."""
    if question.message_id is not None:
        yield await candidates.by_message_id(store, question.message_id, span, sign)
        return
    names = question.indexes()
    if question.outcome is not None and not names:
        async for page in candidates.with_outcome(store, question.outcome, span, sign):
            yield page
        return
    pages = candidates.listed(store, names, span, sign) if names else candidates.everything(span, sign)
    async for page in pages:
        if question.outcome is not None:
            page = await candidates.keep_outcome(store, question.outcome, page)  # noqa: PLW2901
        yield page
