"""What telemetry is set to: the section ``telemetry`` of the gateway's settings.

An agent's program has no ``mas.yaml``; it reads the same from the environment, under the same names.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mas_nats.errors import ConfigurationError

PREFIX = "MAS_GATEWAY__TELEMETRY__"
LOOPBACK = "127.0.0.1"


class TelemetrySettings(BaseModel):
    """OpenTelemetry: traces and metrics. What is not said here, the standard `OTEL_*` variables say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=False, description="Whether anything is exported")
    service_name: str = Field("mas-nats", description="The resource attribute `service.name`")
    service_namespace: str = Field("mas", description="`service.namespace`")
    environment: str = Field("dev", description="`deployment.environment.name`")
    otlp_endpoint: str | None = Field(None, description="OTLP over HTTP, such as `http://localhost:4318`")
    sample_ratio: float = Field(1.0, ge=0, le=1, description="The share of traces that is kept")
    export_metrics: bool = Field(default=True, description="Whether metrics are exported too")
    metrics_export_interval_ms: int = Field(60_000, ge=1_000, description="Milliseconds between exports")
    headers: dict[str, str] = Field(default_factory=dict, repr=False, description="Headers of the exports")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="`/metrics`, `/healthz` and `/readyz` of the first worker; the others take the next "
        "ports; 0: none",
    )
    metrics_host: str = Field(LOOPBACK, description="The address on which they listen")
    metrics_token: str = Field(
        "",
        repr=False,
        description="Needed as a bearer token to read `/metrics`; empty: not needed, on loopback only",
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        try:
            loopback = ipaddress.ip_address(self.metrics_host).is_loopback
        except ValueError:
            raise ValueError("metrics_host must be an IP address") from None
        if not loopback and not self.metrics_token:
            raise ValueError("metrics_host is not the loopback address: set metrics_token too")
        return self


OFF = TelemetrySettings()
"""Nothing was said: no telemetry."""


def from_environment(environment: Mapping[str, str] = os.environ) -> TelemetrySettings:
    """The settings that the environment has.

    Raises:
        ConfigurationError: a variable is unknown or wrong; its value is not repeated.

    """
    said: dict[str, Any] = {}
    for name, value in environment.items():
        if name.upper().startswith(PREFIX):
            said[name[len(PREFIX) :].lower()] = value
    if "headers" in said:
        try:
            said["headers"] = orjson.loads(said["headers"])
        except orjson.JSONDecodeError:
            raise ConfigurationError(f"{PREFIX}HEADERS is not a JSON object of texts") from None
    try:
        return TelemetrySettings.model_validate(said)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        wrong = "; ".join(
            f"{PREFIX}{'__'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in found
        )
        raise ConfigurationError(f"the telemetry settings are wrong: {wrong}") from None
