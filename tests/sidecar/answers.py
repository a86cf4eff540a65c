"""How a request of MCP ended, as its caller is told."""

from __future__ import annotations

import json
from typing import Any

import httpx

SERVED = (0, 200)


def outcome(answer: httpx.Response) -> tuple[int, int]:
    """The code of the error and the status that stands in it; ``SERVED`` where there is no error.

    A request that is refused is answered, so the status of HTTP is 200 either way.
    """
    assert answer.status_code == 200, answer.text
    said = last(answer)
    if "result" in said:
        assert "error" not in said
        return SERVED
    return said["error"]["code"], said["error"]["data"]["status"]


def last(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer; of a stream that of its last event."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
        found: dict[str, Any] = json.loads(events[-1])
    else:
        found = answer.json()
    return found
