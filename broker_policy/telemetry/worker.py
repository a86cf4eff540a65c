"""The telemetry of one worker: where it goes, what is watched, what is looked at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from broker_policy.audit.record import Record
from broker_policy.ending import end
from broker_policy.telemetry.calls import Spans, TracedCall
from broker_policy.telemetry.gauges import Seen
from broker_policy.telemetry.health import Served, look
from broker_policy.telemetry.meters import Instruments, Meters
from broker_policy.telemetry.port import Port
from mas_nats.policy.call import Call
from mas_nats.telemetry import names
from mas_nats.telemetry.exporting import providers
from mas_nats.telemetry.settings import TelemetrySettings

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks at lag, circuits and log."""
STARTING = "the worker is starting"
STALE = "policy cannot be confirmed"


class NamespaceWatch:
    """See ``watching.Watch``."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def arrived(self, call: Call) -> TracedCall:
        """See ``watching.Watch``."""
        return self._spans.arrived(call)

    def recorded(self, record: Record) -> None:
        """See ``watching.Watch``."""
        self._spans.meters.recorded(record)

    def batched(self, calls: Sequence[Any], begun: float) -> None:
        """See ``watching.Watch``."""
        self._spans.batched(calls, begun)


class WorkerTelemetry:
    """Exports what the settings say, and shows the rest on ``port`` (0: nowhere)."""

    def __init__(self, settings: TelemetrySettings, *, worker: str, port: int) -> None:
        self._settings = settings
        self._port_number = port
        self._registry = CollectorRegistry()
        readers = []
        if port:
            reader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
            readers.append(reader)
        self._providers = providers(settings, readers=readers, instance=worker)
        self._tracer = self._providers.tracers.get_tracer(names.SCOPE)
        meter = self._providers.meters.get_meter(names.SCOPE)
        self._instruments = Instruments(meter)
        self._seen = Seen()
        self._seen.show(meter)
        self._trouble = STARTING
        self._looking: asyncio.Task[None] | None = None
        self._port: Port | None = None

    def watch(self, namespace: str) -> NamespaceWatch:
        """What listens to a namespace."""
        return NamespaceWatch(Spans(self._tracer, Meters(self._instruments, namespace), namespace))

    async def start(
        self, namespaces: Callable[[], Mapping[str, Served]], *, stale: Callable[[], bool]
    ) -> None:
        """Look at what is served from here on, and listen. ``stale``: policy cannot be confirmed."""
        self._looking = asyncio.create_task(self._keep_looking(namespaces, stale), name="telemetry")
        if not self._port_number:
            return
        self._port = Port(
            metrics=lambda: (generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4),
            trouble=lambda: STALE if stale() else self._trouble,
            token=self._settings.metrics_token,
        )
        host = self._settings.metrics_host
        try:
            await self._port.start(host, self._port_number)
        except OSError as error:  # messages go on; whoever watches sees that nobody answers
            log.error("no metrics: %s:%d cannot be listened on: %s", host, self._port_number, error)
        else:
            log.info("metrics and health on http://%s:%d", host, self._port_number)

    async def end_looking(self) -> None:
        """The worker stops: it is not ready any more, and what is looked at goes away."""
        self._trouble, self._seen.ready = "the worker is stopping", False
        if self._looking is not None:
            await end([self._looking])

    async def stop(self) -> None:
        """Export what is waiting, and end; within seconds, whatever the exporters do."""
        await self._providers.stop()
        if self._port is not None:
            await self._port.stop()

    async def _keep_looking(
        self, namespaces: Callable[[], Mapping[str, Served]], stale: Callable[[], bool]
    ) -> None:
        while True:
            try:
                self._trouble = await look(self._seen, namespaces())
            except Exception as error:
                log.exception("this worker's health cannot be told")
                self._trouble = f"it cannot be told: {type(error).__name__}"
            self._seen.ready = not self._trouble and not stale()
            await asyncio.sleep(LOOK_EVERY)
