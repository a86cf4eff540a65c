"""What is counted of one namespace in one worker.

Decisions and outcomes are counted when their record is durable, so the sum of all workers' counters is what
the audit holds.
"""

from __future__ import annotations

from opentelemetry.metrics import Meter

from broker_policy.audit.record import Outcome, Record, Way
from mas_nats.telemetry import names
from mas_nats.telemetry.instruments import counter, histogram
from mas_nats.wire.verdict import Decision

_WAYS = {Way.BATCH: "batch", Way.LONE: "lone", Way.ACT: "act", Way.NONE: "none"}


class Instruments:
    """The instruments of one worker."""

    def __init__(self, meter: Meter) -> None:
        self.decisions = counter(meter, names.DECISIONS)
        self.limited = counter(meter, names.RATE_LIMITED)
        self.batch = histogram(meter, names.BATCH_SIZE)
        self.policy = histogram(meter, names.POLICY_DURATION)
        self.outcomes = {
            Outcome.REDELIVERED: counter(meter, names.REDELIVERIES),
            Outcome.DEAD: counter(meter, names.DEAD_LETTERS),
            Outcome.EXPIRED: counter(meter, names.EXPIRED),
        }


class Meters:
    """Counts for one namespace."""

    def __init__(self, instruments: Instruments, namespace: str) -> None:
        self._instruments = instruments
        self._of = {names.NAMESPACE: namespace}

    def answered(self, op: str, seconds: float) -> None:
        """A call of ``op`` has its verdict."""
        self._instruments.policy.record(seconds, {**self._of, names.OP: op})

    def recorded(self, record: Record) -> None:
        """A record is durable."""
        has, of = self._instruments, self._of
        for line in record.decisions:
            has.decisions.add(1, {**of, names.OP: line.op, names.DECISION: str(line.decision)})
            if line.decision == Decision.RATE_LIMITED:
                has.limited.add(1, {**of, names.RULE: line.rule})
        if record.decisions:
            has.batch.record(len(record.decisions), {**of, names.WAY: _way(record)})
        for report in record.reports:
            if (outcome := has.outcomes.get(report.outcome)) is not None:
                outcome.add(1, of)


def _way(record: Record) -> str:
    """How most important of its decisions were committed: together with it, or after it."""
    ways = {line.way for line in record.decisions}
    return next((name for way, name in _WAYS.items() if way in ways), "none")
