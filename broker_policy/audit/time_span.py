"""Where in the chain a range of time lies: found by bisection, without an index of its own.

Decisions stand in the order of the log, and their times are those of workers that keep the server's time, so
they are out of order by seconds at most: a batch that waited for its commit, a message that went alone. With
``DISORDER`` as the bound of that, the span holds every decision of the range: when the decision at ``i`` is
older than ``since - DISORDER``, none before ``i`` is younger than ``since``.

A change of direct state bears the time at which it was made, and stands where it was recorded: hours later,
where no worker followed. It says nothing of its neighbours, so bisection passes it over. What lies between
the two decisions found then is cut by its own times: by reading it, up to ``_READ`` entries; more by a
bisection that takes each time as it is, else a namespace with little but direct state would be read from end
to end. Of a longer row a range of time may miss such changes, and replies, connections and writes of state
that stand alone among them, without a message or a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from broker_policy.audit.candidates import Span, outcomes
from broker_policy.audit.entry import Entry
from broker_policy.audit.layout import BLOCK
from broker_policy.audit.state_marks import STATE_RULES
from broker_policy.audit.store import PAGE, Store, StoredEntry

DISORDER = 60_000
"""Milliseconds by which a decision may be older than one before it in the chain."""
_READ = PAGE
"""Entries between two decisions that are read one by one."""
_PAGES = (1, 32)
"""Entries read, one page after the other, to find a decision; behind them their outcomes are looked at."""
_LETTERS = 1 << 16
"""Outcomes read at once."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Decisions to find: ``fits`` says which entries they are, ``letters`` what outcomes some have."""

    fits: Callable[[Entry], bool]
    letters: re.Pattern[bytes]


_ANY = _Wanted(lambda entry: entry["k"] == "d", re.compile(rb"[^-\0]"))
_TELLING = _Wanted(  # a change of direct state has the outcome "a", or "?" where its record is not trusted
    lambda entry: entry["k"] == "d" and entry["r"] not in STATE_RULES, re.compile(rb"[^-\0a?]")
)


@dataclass(frozen=True, slots=True)
class _Crossing:
    """Where a time is reached: the decisions before ``first`` are older, those from ``end`` on are not."""

    first: int
    end: int


async def span_of(store: Store, span: Span, since: int | None, until: int | None) -> Span:
    """The part of ``span`` outside which no decision is from ``since`` to ``until`` (unix milliseconds).

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    first, last = span.first, span.last
    if since is not None:
        first = (await _crossing(store, since - DISORDER, span)).first
    if until is not None:
        last = (await _crossing(store, until + 1 + DISORDER, span)).end - 1
    return Span(first, last)


async def _crossing(store: Store, time: int, span: Span) -> _Crossing:
    """Where the decisions of ``span`` reach ``time``."""
    gap = await _bisected(store, time, _Crossing(span.first, span.last + 1), _TELLING)
    if gap.end - gap.first > _READ:
        return await _bisected(store, time, gap, _ANY)
    return await _read(store, time, gap)


async def _bisected(store: Store, time: int, within: _Crossing, wanted: _Wanted) -> _Crossing:
    """The part of ``within`` between the last of those wanted that is older, and the first that is not.

    Nothing is looked at twice: the search goes on behind what it looked at, or before it.
    """
    low, high, end = within.first, within.end, within.end
    while low < high:
        middle = (low + high) // 2
        found = await _find(store, middle, high, wanted)
        if found is not None and found[1] < time:
            low = found[0] + 1
        else:
            high = middle
            end = end if found is None else found[0]
    return _Crossing(low, end)


async def _read(store: Store, time: int, gap: _Crossing) -> _Crossing:
    """``gap`` without what is older at its beginning and what is not at its end, by reading all of it."""
    if gap.first >= gap.end:
        return gap
    page = await _between(store, gap.first, gap.end, _READ)
    times = [(stored.index, entry["at"]) for stored in page if _ANY.fits(entry := stored.entry())]
    young = min((index for index, at in times if at >= time), default=gap.end)
    older = [index + 1 for index, at in times if at < time]
    first = max((index for index in older if index <= young), default=gap.first)
    end = max(older, default=gap.first)
    return _Crossing(first, end)


async def _find(store: Store, first: int, end: int, wanted: _Wanted) -> tuple[int, int] | None:
    """Index and time of a decision that is wanted, from ``first`` on and before ``end``.

    It is the first one, but where many others come before: there the first whose outcome shows it.
    """
    for count in _PAGES:
        page = await _between(store, first, end, count)
        for stored in page:
            if wanted.fits(entry := stored.entry()):
                return stored.index, int(entry["at"])
        if len(page) < count:
            return None
        first = page[-1].index + 1
    while first < end:
        last = min(first + _LETTERS, first - first % BLOCK + BLOCK, end) - 1
        for letter in wanted.letters.finditer(await outcomes(store, first, last)):
            index = first + letter.start()
            for stored in await _between(store, index, index + 1, 1):
                if wanted.fits(entry := stored.entry()):
                    return index, int(entry["at"])
        first = last + 1
    return None


async def _between(store: Store, first: int, end: int, count: int) -> list[StoredEntry]:
    return await store.between(f"{first}-0", f"({end}-0", count) if first < end else []
