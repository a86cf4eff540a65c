"""The user's prompt in a call to an agent: at one place of the request, which the settings name."""

from __future__ import annotations

from typing import Any

import orjson

from mas_nats.manifest import json_path
from mas_nats.sidecar.call import Call
from mas_nats.sidecar.refusal import INVALID_PARAMS, Refusal, Shape

_PARAMS = "params"
_MESSAGE, _REQUEST, _PARTS, _CONTENT = "message", "request", "parts", "content"
"""In HTTP+JSON of A2A 0.3, which is its protocol buffers as JSON, a message's parts are its content, and the
message itself may be written by the name of its field, ``request``."""


def prompt_of(call: Call, path: str) -> str | None:
    """What stands at ``path``, as text; None where no path is set.

    A path is of the parameters, which are the body itself in HTTP+JSON: one path fits both bindings. It may
    begin with ``.params``. What it calls ``.message.parts`` is ``.message.content`` in HTTP+JSON of A2A 0.3.

    Raises:
        Refusal: nothing stands there.

    """
    if not path:
        return None
    at = call.document
    if call.shape is not Shape.A2A_REST and isinstance(at, dict):
        at = at.get(_PARAMS)
    parts = json_path.parts(path)
    if parts[0] == _PARAMS:
        parts = parts[1:]
    if call.shape is Shape.A2A_REST and call.version == "0.3":
        parts = _as_in_protocol_buffers(at, parts)
    for part in parts:
        try:
            at = _step(at, part)
        except (KeyError, IndexError):
            raise Refusal(
                "prompt",
                f"there is no prompt at {path}",
                "Send it there, or correct the path in the settings of the application",
                code=INVALID_PARAMS,
                shape=call.shape,
                request_id=call.request_id,
            ) from None
    return at if isinstance(at, str) else orjson.dumps(at, option=orjson.OPT_SORT_KEYS).decode()


def _as_in_protocol_buffers(body: Any, parts: tuple[json_path.Part, ...]) -> tuple[json_path.Part, ...]:
    """The path by the names that ``body`` has; to nowhere, where it has the message under both."""
    if parts[0] != _MESSAGE or not isinstance(body, dict):
        return parts
    named = [name for name in (_MESSAGE, _REQUEST) if name in body]
    inside = (_CONTENT, *parts[2:]) if parts[1:2] == (_PARTS,) else parts[1:]
    return (named[0], *inside) if len(named) == 1 else ("",)


def _step(at: Any, part: json_path.Part) -> Any:
    if isinstance(part, str) and isinstance(at, dict):
        return at[part]
    if isinstance(part, int) and isinstance(at, list):
        return at[part]
    raise KeyError(part)
