"""JSON objects as people give them on a command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import orjson

from mas_nats.errors import ConfigurationError


def payload_of(data: str) -> dict[str, Any]:
    """DATA of a command: a JSON object, ``@FILE`` that holds one, or ``-`` for standard input.

    Raises:
        ConfigurationError: it is none.

    """
    if data == "-":
        raw = sys.stdin.buffer.read()
    elif data.startswith("@"):
        raw = Path(data[1:]).read_bytes()
    else:
        raw = os.fsencode(data)
    try:
        payload = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"DATA is not valid JSON ({error})") from None
    if not isinstance(payload, dict):
        raise ConfigurationError('DATA must be a JSON object, such as \'{"text": "hello"}\'')
    return payload
