"""How long to wait before a process that crashed is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """All in seconds. Each wait is twice the one before, until a run was a good one."""

    first: float = 0.5
    most: float = 30.0
    good: float = 60.0  # a run that was ready for so long is a good one

    def after(self, before: float | None, ran: float) -> float:
        """The wait after a run that was ready for ``ran`` seconds; ``before`` is the last wait, if any."""
        if before is None or ran >= self.good:
            return self.first
        return min(before * 2, self.most)
