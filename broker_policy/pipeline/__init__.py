"""The ordered steps every message passes; the first refusal wins.

``shape`` then ``authorize``, each a function of the call and the table it is judged under. What comes after
them is asked about a whole batch at once, in ``calls.messages``: ``admission``. Last is ``dlp``.
"""

from __future__ import annotations

from collections.abc import Callable

from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import shape
from mas_nats.policy.table import Table

Step = Callable[[Call, Table], Refusal | None]

STEPS: tuple[Step, ...] = (shape, authorize)

__all__ = ["STEPS", "Call", "Refusal", "Step", "judge"]


def judge(call: Call, table: Table) -> Refusal | None:
    """The first refusal of the pipeline, or None when every step lets the call pass."""
    for step in STEPS:
        if (refusal := step(call, table)) is not None:
            return refusal
    return None
