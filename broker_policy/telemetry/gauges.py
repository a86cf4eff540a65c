"""What is looked at now and then, and shown as it was last seen: lag, circuits, readiness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from broker_policy.audit.projector import Lag
from mas_nats.telemetry import names
from mas_nats.telemetry.names import Metric

STATES = ("open", "half_open")
Observe = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(slots=True)
class Seen:
    """What was seen last; read by the threads that export, replaced as a whole by the one that looks."""

    ready: bool = False
    lags: dict[str, Lag] = field(default_factory=dict)  # by namespace
    circuits: dict[str, Counter[str]] = field(default_factory=dict)  # likewise, by state

    def show(self, meter: Meter) -> None:
        """Have it in every export."""
        _gauge(meter, names.READY, lambda: [Observation(int(self.ready))])
        _gauge(
            meter,
            names.AUDIT_LAG,
            lambda: [Observation(lag.age, {names.NAMESPACE: of}) for of, lag in self.lags.items()],
        )
        _gauge(
            meter,
            names.AUDIT_WAITING,
            lambda: [Observation(lag.records, {names.NAMESPACE: of}) for of, lag in self.lags.items()],
        )
        _gauge(
            meter,
            names.CIRCUITS,
            lambda: [
                Observation(found[state], {names.NAMESPACE: of, names.STATE: state})
                for of, found in self.circuits.items()
                for state in STATES
            ],
        )


def _gauge(meter: Meter, metric: Metric, look: Callable[[], Sequence[Observation]]) -> None:
    def observe(_: CallbackOptions) -> Sequence[Observation]:
        return look()

    meter.create_observable_gauge(metric.name, [observe], unit=metric.unit, description=metric.what)
