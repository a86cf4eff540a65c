"""What ``mas up`` is to bring up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from broker_policy.embedded.ports import LOOPBACK
from mas_nats.telemetry.settings import OFF, TelemetrySettings


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's chain and key, and the agents' CA, which must vouch for the server too."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bring up.

    A ``port`` of 0 is the port of the last start, else 4222, else a free one. ``manifest`` is a ``mas.yaml``
    to apply. ``relaxed`` gives up that an accepted message survives a power cut. ``nodes`` of nats-server: as
    many as the last time, else one, when it is None. ``host`` is where the server listens: the loopback
    address, or ``0.0.0.0`` for all. ``tls`` are the server's files and the agents' CA; None: those of the
    folder. ``redis`` is the URL of a Redis to join; one of its own is started where it is empty, and where
    nothing answers on this machine (``redis_choice``). ``telemetry`` is that of the workers.
    """

    workers: int = 2
    port: int = 0
    manifest: Path | None = None
    relaxed: bool = False
    nodes: int | None = None
    host: str = LOOPBACK
    tls: TlsFiles | None = None
    redis: str = field(default="", repr=False)
    redis_timeout: float | None = None  # seconds
    telemetry: TelemetrySettings = OFF
