"""What a test can look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mas_nats.wire.verdict import Decision


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that was accepted.

    ``op`` is ``send``, ``request``, ``reply``, or ``release`` of one that was delayed.
    """

    op: str
    message_id: str
    sender: str
    target: str
    message_type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that its agent could not handle.

    ``reason`` is ``EXHAUSTED`` when it failed as often as it may, else the class of the error that ended it.
    ``error`` is the last one, without anything of the payload.
    """

    message: SentMessage
    reason: str
    attempts: int
    error: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SeenDecision:
    """What was decided about one call."""

    op: str
    sender: str
    target: str
    message_type: str
    message_id: str
    decision: Decision
    step: str = ""
    rule: str = ""
    reason: str = ""
