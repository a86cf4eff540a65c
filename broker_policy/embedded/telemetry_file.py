"""The telemetry settings of a folder's workers: a file of their own, since they may hold a token."""

from __future__ import annotations

from pydantic import ValidationError

from broker_policy.embedded.layout import Layout
from broker_policy.identity.private_files import write_private
from mas_nats.errors import ConfigurationError
from mas_nats.telemetry.settings import OFF, TelemetrySettings


def write(layout: Layout, settings: TelemetrySettings) -> None:
    """Write what was said; there is no file where nothing was."""
    if settings.model_fields_set:
        write_private(layout.telemetry, settings.model_dump_json(exclude_unset=True).encode())
    else:
        layout.telemetry.unlink(missing_ok=True)


def read(layout: Layout) -> TelemetrySettings:
    """What holds there.

    Raises:
        ConfigurationError: the file is damaged.

    """
    try:
        return TelemetrySettings.model_validate_json(layout.telemetry.read_bytes())
    except FileNotFoundError:
        return OFF
    except ValidationError:
        raise ConfigurationError(f"{layout.telemetry} is damaged: run mas down, then mas up") from None


def port_of(settings: TelemetrySettings, number: int) -> int:
    """Where worker ``number``, from 1, shows its metrics and its health; 0: nowhere."""
    return settings.metrics_port + number - 1 if settings.metrics_port else 0
