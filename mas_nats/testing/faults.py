"""What a test wants to go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from mas_nats.policy.call import Call, Refusal


class Effect(StrEnum):
    """What happens to a call."""

    REFUSE = "refuse"
    LOSE_CALL = "lose the call"  # it does not arrive
    LOSE_ANSWER = "lose the answer"  # it arrives, and its answer does not


@dataclass(slots=True)
class Fault:
    """Happens to the next ``times`` calls that fit; to all of them where that is None."""

    effect: Effect
    op: str | None = None
    sender: str | None = None
    target: str | None = None
    times: int | None = 1
    refusal: Refusal | None = None

    def fits(self, call: Call) -> bool:
        """Whether it is about this call."""
        return (
            self.op in (None, call.op)
            and self.sender in (None, call.sender)
            and self.target in (None, call.target)
        )


@dataclass(slots=True)
class Faults:
    """The faults to come, the first that fits counts."""

    _waiting: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Let it happen from here on."""
        self._waiting.append(fault)

    def remove(self, fault: Fault) -> None:
        """No longer."""
        if fault in self._waiting:
            self._waiting.remove(fault)

    def of(self, call: Call) -> Fault | None:
        """What shall happen to ``call``; counts as done."""
        for fault in self._fitting(call):
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
            return fault
        return None

    def _fitting(self, call: Call) -> Iterator[Fault]:
        return (fault for fault in tuple(self._waiting) if fault.fits(call))
