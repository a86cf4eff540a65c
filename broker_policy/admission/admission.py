"""The step between permission and content: is the sender within its limits, and the target well enough.

A whole batch is asked about at once, since only Redis knows. Messages and requests count as sent, and those
to be delivered later when they are taken, not when they are due. Replies, frames and everything that keeps
agents running never count, so that a limit breaks off no conversation that it let begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from broker_policy.dedup import dedup_of
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.governance import RateLimits
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op

COUNTED = frozenset({Op.SEND, Op.REQUEST, Op.DELAY, Op.PROMPT})
"""The calls that rate limits count."""


class CountsMessages(Protocol):
    """The rate limits (``admission.rates``)."""

    async def admit(self, messages: Sequence[tuple[str, str]], rates: RateLimits) -> list[Refusal | None]:
        """The refusals of those that are too many; the others are counted."""


class KnowsCircuits(Protocol):
    """The circuit breaker (``admission.breaker``)."""

    @property
    def quiet(self) -> bool:
        """Whether every circuit is closed."""

    def concerns(self, target: str) -> bool:
        """Whether the circuit of ``target`` is not closed."""

    async def admit(self, messages: Sequence[tuple[str, str]]) -> list[Refusal | bool]:
        """Of messages (target and dedup id): a refusal, True for a probe, else False."""

    def foresee(self, target: str) -> Refusal | None:
        """Whether messages to ``target`` are refused at the moment."""


class Admission:
    """Of one namespace in one worker. ``known``: whether a message of a dedup id is stored already."""

    def __init__(
        self,
        namespace: str,
        rates: CountsMessages,
        breaker: KnowsCircuits,
        *,
        known: Callable[[str], bool],
    ) -> None:
        self._namespace = namespace
        self._rates = rates
        self._breaker = breaker
        self._known = known

    def concerns(self, table: Table) -> bool:
        """Whether it has anything to say, so that calls must wait for it."""
        return table.limited or not self._breaker.quiet

    async def admit(self, calls: Sequence[Call], table: Table) -> list[Refusal | None]:
        """The refusals, by place. Whoever is let through is counted, once however often it is judged."""
        refused = await self._within_limits(calls, table)
        if not self._breaker.quiet:
            await self._tried(calls, refused)
        return refused

    def foresee(self, call: Call) -> Refusal | None:
        """What is against a call that is not going to happen."""
        return self._breaker.foresee(call.target)

    async def _within_limits(self, calls: Sequence[Call], table: Table) -> list[Refusal | None]:
        refused: list[Refusal | None] = [None] * len(calls)
        rates = table.document.governance.rate_limit
        counted = [place for place, call in enumerate(calls) if self._counts(call)] if table.limited else []
        messages = [(calls[place].sender, calls[place].target) for place in counted]
        for place, refusal in zip(counted, await self._rates.admit(messages, rates), strict=True):
            refused[place] = refusal
            calls[place].admitted = refusal is None
        return refused

    async def _tried(self, calls: Sequence[Call], refused: list[Refusal | None]) -> None:
        """Refuse what goes to a target that fails, but for the probes."""
        asked = [place for place, call in enumerate(calls) if refused[place] is None and self._is_tried(call)]
        if not asked:
            return
        messages = [(calls[place].target, self._dedup(calls[place])) for place in asked]
        for place, said in zip(asked, await self._breaker.admit(messages), strict=True):
            if isinstance(said, Refusal):
                refused[place] = said
            else:
                calls[place].probe = said

    def _is_tried(self, call: Call) -> bool:
        concerned = call.op != Op.DELAY and not call.probe and self._breaker.concerns(call.target)
        return concerned and not self._stored(call)

    def _counts(self, call: Call) -> bool:
        counts = call.op in COUNTED and call.errand is None and not call.admitted
        return counts and not self._stored(call)

    def _stored(self, call: Call) -> bool:
        """Whether it repeats what was accepted before, and is only to be told so."""
        return self._known(self._dedup(call))

    def _dedup(self, call: Call) -> str:
        return dedup_of(self._namespace, call)
