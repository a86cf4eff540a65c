"""What the policy service says of its work, whoever listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from broker_policy.audit.record import DecisionLine, Record
from mas_nats.policy.call import Call
from mas_nats.wire.verdict import Verdict


class WatchedCall(Protocol):
    """One call on its way through the service."""

    def decided(self, line: DecisionLine) -> None:
        """What will stand in the audit about it."""

    def recorded(self, reference: str) -> None:
        """Its decision is durable under this name."""

    def answered(self, verdict: Verdict) -> None:
        """It gets its verdict now."""


class Watch(Protocol):
    """Listens to one namespace in one worker."""

    def arrived(self, call: Call) -> WatchedCall:
        """A call begins its way. Where it has no trace yet it is given one."""

    def recorded(self, record: Record) -> None:
        """A record is durable."""

    def batched(self, calls: Sequence[Any], begun: float) -> None:
        """One atomic batch carried these watched calls; ``begun`` by ``time.perf_counter``."""
