"""Rate limits of one namespace: exact over all workers, and each worker's share of them without Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from broker_policy.admission.counters import Away, Counters
from broker_policy.admission.gcra import SCRIPT, Batch, Excess, Limit, OwnRates, limits_of
from mas_nats.policy import refusals
from mas_nats.policy.call import Refusal
from mas_nats.policy.governance import RateLimits


def _monotonic() -> int:
    return time.monotonic_ns() // 1000


class Rates:
    """Counts messages. ``workers`` says among how many a limit is shared out while Redis is away.

    ``now``, for tests: unix time in microseconds instead of Redis's own.
    """

    def __init__(
        self,
        counters: Counters,
        namespace: str,
        *,
        workers: Callable[[], int],
        now: Callable[[], int | None] = lambda: None,
        own_clock: Callable[[], int] = _monotonic,
    ) -> None:
        self._counters = counters
        self._prefix = f"mas:rate:{namespace}:"
        self._workers = workers
        self._now = now
        self._own_clock = own_clock
        self._own = OwnRates()
        self._compiled: tuple[RateLimits, tuple[Limit, ...]] = (RateLimits(), ())

    async def admit(self, messages: Sequence[tuple[str, str]], rates: RateLimits) -> list[Refusal | None]:
        """Count ``messages`` (sender and target), in this order; the refusals of those that are too many."""
        if rates is not self._compiled[0]:
            self._compiled = rates, limits_of(rates)
        limits = self._compiled[1]
        refused: list[Refusal | None] = [None] * len(messages)
        if not limits or not messages:
            return refused
        batch, shared_by = Batch.of(messages, limits), 0
        try:
            excess = await self._count(batch)
        except Away:
            shared_by = max(1, self._workers())
            shares = [limit.share(shared_by) for limit in batch.limits]
            excess = self._own.admit(replace(batch, limits=shares), self._own_clock())
        for each in excess:
            sender, target = messages[each.place]
            limit = each.limit
            whom = f"to {target}" if limit.pair else ""
            refused[each.place] = refusals.rate_limited(
                limit.rule, sender, whom, limit.count, limit.span, each.wait / 1e6, shared_by
            )
        return refused

    async def _count(self, batch: Batch) -> list[Excess]:
        keys = [self._prefix + key for key in batch.keys]
        answer = await self._counters.run(SCRIPT, keys, batch.arguments(self._now()))
        return [Excess(int(place), batch.limits[k], int(wait)) for place, k, wait in answer]
