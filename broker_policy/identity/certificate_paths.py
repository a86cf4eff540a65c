"""Where a certificate lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CertificatePaths:
    """The three files a TLS client or server needs, in PEM."""

    ca: Path
    cert: Path
    key: Path
