"""Outcomes on their way into the chain: one entry covers many decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from broker_policy.audit import entry
from broker_policy.audit.draft import Draft
from broker_policy.audit.record import Outcome
from broker_policy.audit.tail import Tail

_RANK = {Outcome.REDELIVERED: 1, Outcome.HANDLED: 2, Outcome.DEAD: 2, Outcome.EXPIRED: 2}
FINAL_FOR_MESSAGE = frozenset({Outcome.HANDLED, Outcome.DEAD, Outcome.EXPIRED, Outcome.UNKNOWN})
"""Outcomes after which a message is no longer in the inbox."""


@dataclass(slots=True)
class Settled:
    """Outcomes grouped by what they say; written in the order in which a message can have them."""

    _groups: dict[tuple[Outcome, str, int], dict[int, int]] = field(default_factory=dict)

    def add(self, index: int, what: Outcome, *, message: int = 0, reason: str = "", attempt: int = 0) -> None:
        """The decision at ``index`` has the outcome ``what``."""
        self._groups.setdefault((what, reason, attempt), {})[index] = message

    def add_all(self, indexes: Iterable[int], what: Outcome, *, reason: str = "") -> None:
        """The decisions at ``indexes`` have the outcome ``what``."""
        self._groups.setdefault((what, reason, 0), {}).update(dict.fromkeys(indexes, 0))

    def write(self, draft: Draft, now: int) -> int:
        """Add the entries to ``draft`` and set the letters; returns how many decisions they cover."""
        covered = 0
        for what, reason, attempt in sorted(self._groups, key=_order):
            members = self._groups[what, reason, attempt]
            for indexes in _portions(sorted(members)):
                messages = [members[index] for index in indexes]
                draft.add(
                    entry.outcome(
                        draft.next_index,
                        draft.sequence,
                        now,
                        what,
                        indexes,
                        messages=messages if any(messages) else (),
                        reason=reason,
                        attempt=attempt,
                    )
                )
                draft.set_outcomes(indexes, what)
                covered += len(indexes)
        return covered


async def append(tail: Tail, draft: Draft, settled: Settled) -> int:
    """Append ``draft`` with them; returns how many decisions they cover. Errors as ``Tail.append``."""
    covered = settled.write(draft, tail.now())
    if draft.changes_something:
        await tail.append(draft)
    return covered


def _order(group: tuple[Outcome, str, int]) -> tuple[int, int]:
    what, _, attempt = group
    return _RANK.get(what, 0), attempt


def _portions(indexes: list[int]) -> Iterator[list[int]]:
    """Split so that no entry holds more than ``MAX_RANGES`` ranges."""
    start, count = 0, 1
    for place in range(1, len(indexes)):
        if indexes[place] != indexes[place - 1] + 1:
            count += 1
            if count > entry.MAX_RANGES:
                yield indexes[start:place]
                start, count = place, 1
    if indexes:
        yield indexes[start:]
