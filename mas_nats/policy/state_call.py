"""The body of a call about an agent's own state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


class BadStateCall(ValueError):
    """The call's body is not one of get, put, delete."""


@dataclass(frozen=True, slots=True)
class StateCall:
    """One call about state: ``op`` is get, put or delete; ``value`` is the new state as JSON."""

    op: str
    revision: int = 0
    value: bytes = b""

    @classmethod
    def read(cls, body: bytes, limit: int) -> StateCall:
        """Read a call's body; a state may have ``limit`` bytes of JSON.

        Raises:
            BadStateCall: it is malformed or too large; the text says what to do.

        """
        try:
            raw: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BadStateCall("the state call is not JSON") from None
        if not isinstance(raw, dict) or raw.get("op") not in ("get", "put", "delete"):
            raise BadStateCall("a state call needs op: get, put or delete")
        if raw["op"] == "get":
            return cls("get")
        revision = raw.get("revision")
        if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
            raise BadStateCall("a state write needs the revision it replaces (0: none)")
        if raw["op"] == "delete":
            return cls("delete", revision)
        if not isinstance(raw.get("value"), dict):
            raise BadStateCall("a state must be a JSON object")
        try:
            value = orjson.dumps(raw["value"])
        except orjson.JSONEncodeError:
            raise BadStateCall("the state is nested too deeply") from None
        if len(value) > limit:
            raise BadStateCall(f"the state has {len(value)} bytes, the limit is {limit}")
        return cls("put", revision, value)
