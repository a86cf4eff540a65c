"""What nats-server's and Redis's configuration files have in common."""

from __future__ import annotations

import json
from pathlib import Path


def quoted(value: str | Path) -> str:
    """A quoted string as both servers read it: their escapes are those of JSON."""
    return json.dumps(str(value), ensure_ascii=False)
