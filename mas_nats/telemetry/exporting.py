"""Providers as the settings and the standard ``OTEL_*`` variables describe them: OTLP over HTTP.

What a setting says beats its variable; what no setting says, the variable says; else the setting's default
holds. Spans and metrics leave in threads of their own, from queues that forget what does not fit: an endpoint
that is away, or hangs, costs telemetry and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NoOpTracerProvider
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from mas_nats.telemetry.settings import TelemetrySettings

FLUSH = 2.0
"""Seconds that a stopping program waits for what it has not exported yet."""
_RESOURCE = {
    "service_name": ("service.name", "OTEL_SERVICE_NAME"),
    "service_namespace": ("service.namespace", ""),
    "environment": ("deployment.environment.name", ""),
}


@dataclass(frozen=True, slots=True)
class Providers:
    """Where spans and measurements go. ``own``: made here, so to be flushed and ended here."""

    tracers: AnyTracerProvider
    meters: AnyMeterProvider
    own: bool = True

    async def flush(self) -> None:
        """Export what is waiting; not longer than ``FLUSH`` seconds."""
        if self.own:
            await asyncio.gather(_bounded(self.tracers, "force_flush"), _bounded(self.meters, "force_flush"))

    async def stop(self) -> None:
        """Export what is waiting and end; not longer than ``FLUSH`` seconds for each of both."""
        if self.own:
            await asyncio.gather(_bounded(self.tracers, "shutdown"), _bounded(self.meters, "shutdown"))


async def _bounded(provider: Any, what: str) -> None:
    """Call it in a thread that nobody waits for at the end: an exporter may hang for as long as it likes."""
    if not hasattr(provider, what):
        return
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            getattr(provider, what)()
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name=f"telemetry-{what}", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH):
            await done.wait()
    except TimeoutError:
        pass


@lru_cache(maxsize=4)
def shared(settings: str) -> Providers:
    """The providers of ``settings`` (JSON), the same for every agent of this process."""
    return providers(TelemetrySettings.model_validate_json(settings), instance=uuid4().hex)


def providers(
    settings: TelemetrySettings, *, readers: Sequence[MetricReader] = (), instance: str = ""
) -> Providers:
    """Make them. ``readers`` read the metrics too, also where nothing is exported."""
    said = settings.model_fields_set
    exported = settings.enabled and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    resource = _resource(settings, instance)
    tracers: AnyTracerProvider = NoOpTracerProvider()
    all_readers = list(readers)
    headers = dict(settings.headers) or None
    if exported:
        made = TracerProvider(resource=resource, sampler=_sampler(settings), shutdown_on_exit=False)
        made.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=_endpoint(settings, "traces"), headers=headers))
        )
        tracers = made
    if exported and settings.export_metrics:
        by_variable = "metrics_export_interval_ms" not in said and "OTEL_METRIC_EXPORT_INTERVAL" in os.environ
        all_readers.append(
            PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=_endpoint(settings, "metrics"), headers=headers),
                export_interval_millis=None if by_variable else settings.metrics_export_interval_ms,
            )
        )
    meters: AnyMeterProvider = NoOpMeterProvider()
    if all_readers:
        meters = MeterProvider(metric_readers=all_readers, resource=resource, shutdown_on_exit=False)
    return Providers(tracers, meters)


def _resource(settings: TelemetrySettings, instance: str) -> Resource:
    """Who this is; ``OTEL_RESOURCE_ATTRIBUTES`` adds to it."""
    standard = Resource.create()  # the variables, and the SDK's own
    attributes: dict[str, str] = {"service.version": version("mas-nats")}
    if instance:
        attributes["service.instance.id"] = instance
    in_variable = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    for field, (name, variable) in _RESOURCE.items():
        by_variable = f"{name}=" in in_variable or (variable and variable in os.environ)
        if field in settings.model_fields_set or not by_variable:
            attributes[name] = getattr(settings, field)
    return standard.merge(Resource(attributes))


def _sampler(settings: TelemetrySettings) -> Sampler | None:
    """The sampler, which keeps a trace that was begun elsewhere as it was begun.

    None: that of ``OTEL_TRACES_SAMPLER``.
    """
    if "sample_ratio" not in settings.model_fields_set and "OTEL_TRACES_SAMPLER" in os.environ:
        return None
    return ParentBased(TraceIdRatioBased(settings.sample_ratio))


def _endpoint(settings: TelemetrySettings, signal: str) -> str | None:
    """The address of one signal; None: that of the variables."""
    if settings.otlp_endpoint is None:
        return None
    return f"{settings.otlp_endpoint.rstrip('/')}/v1/{signal}"
