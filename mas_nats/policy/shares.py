"""What one may hold of something that all share: as much as stays free for all others (ADR 44)."""

from __future__ import annotations

_LEAST_PART = 256
_LEAST_BYTES = 64 << 10


def most_for_one(used: int, limit: int) -> int | None:
    """Bytes that one may hold of ``limit``, of which ``used`` are taken; None: whatever it holds is fine.

    That is so as long as less than half is taken, since nobody holds more than is free then; and where
    nothing is free, which is what everybody is told. A little anybody may hold: where something else fills
    it, who holds little is not to blame.
    """
    free = limit - used
    return max(free, limit // _LEAST_PART, _LEAST_BYTES) if 0 < free < used else None
