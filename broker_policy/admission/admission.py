"""The step between permission and content: whether the sender is within its limits.

A whole batch is asked about at once, since only Redis knows. Messages and requests count as sent, and those
to be delivered later when they are taken, not when they are due. Replies, frames and everything that keeps
agents running never count, so that a limit breaks off no conversation that it let begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.governance import RateLimits
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op

COUNTED = frozenset({Op.SEND, Op.REQUEST, Op.DELAY})
"""The calls that rate limits count."""


class CountsMessages(Protocol):
    """The rate limits (``admission.rates``)."""

    async def admit(self, messages: Sequence[tuple[str, str]], rates: RateLimits) -> list[Refusal | None]:
        """The refusals of those that are too many; the others are counted."""


class Admission:
    """Of one namespace in one worker. ``known``: whether a call repeats a message that is stored already."""

    def __init__(self, rates: CountsMessages, *, known: Callable[[Call], bool]) -> None:
        self._rates = rates
        self._known = known

    def concerns(self, table: Table) -> bool:
        """Whether it has anything to say, so that calls must wait for it."""
        return table.limited

    async def admit(self, calls: Sequence[Call], table: Table) -> list[Refusal | None]:
        """The refusals, by place. Whoever is let through is counted, once however often it is judged."""
        refused: list[Refusal | None] = [None] * len(calls)
        rates = table.document.governance.rate_limit
        counted = [place for place, call in enumerate(calls) if self._counts(call)] if table.limited else []
        messages = [(calls[place].sender, calls[place].target) for place in counted]
        for place, refusal in zip(counted, await self._rates.admit(messages, rates), strict=True):
            refused[place] = refusal
            calls[place].admitted = refusal is None
        return refused

    def _counts(self, call: Call) -> bool:
        return call.op in COUNTED and call.errand is None and not call.admitted and not self._known(call)
