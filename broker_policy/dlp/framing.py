"""What goes through the pipes to the process that searches: a header in JSON and a payload."""

from __future__ import annotations

import struct
from typing import Any

import orjson

LENGTHS = struct.Struct(">II")


def framed(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One message."""
    said = orjson.dumps(header)
    return LENGTHS.pack(len(said), len(payload)) + said + payload


def opened(lengths: bytes, rest: bytes) -> tuple[dict[str, Any], bytes]:
    """The message that ``framed`` made of it: its first eight bytes, and the rest."""
    size = LENGTHS.unpack(lengths)[0]
    header: dict[str, Any] = orjson.loads(rest[:size])
    return header, rest[size:]
