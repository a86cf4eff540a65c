"""Instruments made of their description in ``names``."""

from __future__ import annotations

from opentelemetry.metrics import Counter, Histogram, Meter

from mas_nats.telemetry.names import Metric


def counter(meter: Meter, metric: Metric) -> Counter:
    """The counter that ``metric`` describes."""
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.what)


def histogram(meter: Meter, metric: Metric) -> Histogram:
    """The histogram that ``metric`` describes."""
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.what,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )
