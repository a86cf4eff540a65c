"""Whether an agent is traced and measured, and by whom."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from mas_nats.errors import ConfigurationError
from mas_nats.telemetry.settings import PREFIX, from_environment
from mas_nats.telemetry.watching import Telemetry

_SWITCH = f"{PREFIX}ENABLED"
_MISSING = 'telemetry is on, but OpenTelemetry is missing: pip install "mas-nats[telemetry]"'


def choose(agent: str, namespace: Callable[[], str]) -> Telemetry | None:
    """The telemetry of one agent instance.

    The application's own providers where it has set any; else, where the environment turns it on, those that
    the settings describe; else none. OpenTelemetry is imported in the first two cases only.

    Raises:
        ConfigurationError: it is turned on and cannot be had.

    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if _application_has_some():
        from mas_nats.telemetry import agent as watched  # noqa: PLC0415 - not imported while it is off

        return watched.of_application(agent, namespace)
    if not any(name.upper() == _SWITCH for name in os.environ):
        return None
    settings = from_environment()
    if not settings.enabled:
        return None
    try:
        from mas_nats.telemetry import agent as watched  # noqa: PLC0415
        from mas_nats.telemetry import exporting  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(_MISSING) from error
    return watched.of_providers(
        agent, namespace, exporting.shared(settings.model_dump_json(exclude_unset=True))
    )


def _application_has_some() -> bool:
    """Whether the program itself has set a provider; without the package it cannot have."""
    found = False
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        found = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    if not found and (metrics := sys.modules.get("opentelemetry.metrics")) is not None:
        found = type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider"
    return found
