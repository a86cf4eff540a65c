"""Direct state in the chain: each revision once, though two workers may both have recorded it.

A worker that takes over from one that died begins at the position which that one had reached for certain,
so what was recorded last may be recorded again. Here it is left out: the chain remembers, for each agent,
the last revision it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker_policy.audit.numbering import Received
from broker_policy.audit.record import DecisionLine

DIRECT_STATE = "direct_state"
"""The rule of a line about one revision; its message id is the revision."""
STATE_GAP = "state_gap"
"""The rule of a line about revisions that nobody saw: the message id is ``<seen>-<seen>``, the revisions
between which they were."""

STATE_RULES = frozenset({DIRECT_STATE, STATE_GAP})
"""The rules of lines about direct state."""


@dataclass(frozen=True, slots=True)
class StateMark:
    """The newest revision of an agent's state that is in the chain."""

    revision: int
    time: int  # when it was written, unix milliseconds
    gap: bool = False  # up to it, something was seen by nobody

    @classmethod
    def of(cls, line: DecisionLine) -> StateMark | None:
        """What ``line`` accounts for; None when it is not about direct state."""
        if line.rule == DIRECT_STATE and _counts(first := line.message_id.partition("-")[0]):
            return cls(int(first), line.time)
        if line.rule == STATE_GAP and _counts(after := line.message_id.partition("-")[2]):
            return cls(int(after) - 1, line.time, gap=True)
        return None

    def covers(self, other: StateMark) -> bool:
        """Whether ``other`` is in the chain.

        Revisions begin anew when a bucket was lost and made again; then they are later in time. A gap ends
        right before a revision and has its time: nothing is missing where that one comes next in the chain.
        """
        if other.gap and other.revision == self.revision:
            return True
        return other.revision <= self.revision and other.time <= self.time

    def then(self, other: StateMark) -> StateMark:
        """After ``other`` was added."""
        return StateMark(other.revision, max(self.time, other.time))

    def encode(self) -> str:
        """As it lies in Redis."""
        return f"{self.revision} {self.time}"

    @classmethod
    def decode(cls, raw: bytes) -> StateMark:
        """As it came from Redis."""
        revision, time = raw.split()
        return cls(int(revision), int(time))


def _counts(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def state_agents(portion: Iterable[Received]) -> set[str]:
    """The agents whose direct state ``portion`` speaks of."""
    return {
        line.sender
        for received in portion
        if received.record is not None
        for line in received.record.decisions
        if line.rule in STATE_RULES and StateMark.of(line) is not None
    }
