"""A tool as its server describes it, and what tells one description from another."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from mas_nats.sidecar.jsonrpc import NAME

_NOT_SAID = frozenset({"_meta"})
"""Members that no model is shown."""


def fingerprint(tool: dict[str, Any]) -> str:
    """The SHA-256, hexadecimal, of all that is said of a tool: name, description, schemas, annotations."""
    said = {key: value for key, value in tool.items() if key not in _NOT_SAID}
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()


def name_of(tool: Any) -> str:
    """The name of a tool; "" where there is none that everybody reads in the same way."""
    name = tool.get("name") if isinstance(tool, dict) else None
    return name if isinstance(name, str) and NAME.fullmatch(name) else ""
