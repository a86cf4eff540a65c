"""Where in the chain a range of time lies: found by bisection, without an index of its own.

Decisions stand in the order of the log, and their times are those of workers that keep the server's time, so
they are out of order by seconds at most: a batch that waited for its commit, a message that went alone. With
``DISORDER`` as the bound of that, the span holds every decision of the range: when the decision at ``i`` is
older than ``since - DISORDER``, none before ``i`` is younger than ``since``.

What was recorded after the fact (a change of direct state while no worker followed) stands where it was
recorded. Is that later than its own time by more than ``DISORDER``, a range of time may miss it.
"""

from __future__ import annotations

from broker_policy.audit.candidates import Span
from broker_policy.audit.store import Store

DISORDER = 60_000
"""Milliseconds by which a decision may be older than one before it in the chain."""
_AT_ONCE = 32


async def span_of(store: Store, span: Span, since: int | None, until: int | None) -> Span:
    """The part of ``span`` outside which no decision is from ``since`` to ``until`` (unix milliseconds).

    Raises:
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    first, last = span.first, span.last
    if since is not None:
        first = await _reaches(store, since - DISORDER, span)
    if until is not None:
        last = await _reaches(store, until + 1 + DISORDER, span) - 1
    return Span(first, last)


async def _reaches(store: Store, time: int, span: Span) -> int:
    """Where the times of decisions reach ``time``; behind ``span`` when they do not."""
    low, high = span.first, span.last + 1
    while low < high:
        middle = (low + high) // 2
        found = await _decision_from(store, middle, high)
        if found is None or found[1] >= time:
            high = middle
        else:
            low = found[0] + 1
    return low


async def _decision_from(store: Store, first: int, end: int) -> tuple[int, int] | None:
    """Index and time of the first decision from ``first`` on and before ``end``."""
    count = 1
    while first < end:
        page = await store.between(f"{first}-0", f"({end}-0", count)
        for stored in page:
            entry = stored.entry()
            if entry["k"] == "d":
                return stored.index, int(entry["at"])
        if len(page) < count:
            return None
        first, count = page[-1].index + 1, _AT_ONCE
    return None
