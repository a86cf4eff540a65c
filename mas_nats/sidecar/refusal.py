"""What is refused, by which rule, and how the caller is told: in the form its protocol has for errors.

Codes: JSON-RPC 2.0; MCP 2026-07-28 for -32020; A2A 1.0 section 3.3 for -32003 and -32009. -32010 to -32013
are the sidecar's own, from the range that JSON-RPC leaves to implementations and neither protocol uses.
MCP says the status of what is no message, version, header, method or session that it has. A request that is
refused otherwise is answered with status 200, as servers answer one that went wrong (ADR 45).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import orjson

from mas_nats.sidecar.http_message import JSON, HttpResponse

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
PUSH_NOT_SUPPORTED = -32003
A2A_VERSION = -32009
REFUSED = -32010
UNAVAILABLE = -32011
OUTCOME_UNKNOWN = -32012
TOO_LARGE = -32013
HEADER_MISMATCH = -32020
MCP_VERSION = -32022

_ANSWERS = frozenset({METHOD_NOT_FOUND, INVALID_PARAMS, REFUSED, UNAVAILABLE, OUTCOME_UNKNOWN, TOO_LARGE})
"""Codes of errors that answer a request of MCP with status 200; but for 404, which MCP has a meaning for."""
_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_DOMAIN = "mas.sidecar"
_TYPE = "mas_sidecar"
_ANTHROPIC = {
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
"""Names of Anthropic's errors by status."""


class Shape(StrEnum):
    """The form of an error."""

    MCP = "mcp"  # JSON-RPC, with the status in HTTP where MCP has one for it
    A2A_RPC = "a2a_rpc"  # JSON-RPC with status 200, as A2A servers answer
    A2A_REST = "a2a_rest"  # google.rpc.Status
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    PLAIN = "plain"  # JSON for a request of no known protocol


@dataclass(eq=False)
class Refusal(Exception):
    """A call that does not pass, or did not end well.

    ``rule`` is its name in logs and tests; ``text`` says what was wrong and ``fix`` what to do, without any
    content. ``ran`` says whether the application may have run the call: "no", or "unknown".
    """

    rule: str
    text: str
    fix: str = ""
    status: int = 400
    code: int = INVALID_REQUEST
    shape: Shape = Shape.PLAIN
    request_id: str | int | None = None
    ran: str = "no"
    message_id: str = ""  # where a message was involved: finds it in the audit
    retry_after: float = 0.0  # seconds
    allow: str = ""  # the methods that would be taken

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}{'. ' + self.fix if self.fix else ''}"

    def to(self, shape: Shape, request_id: str | int | None = None) -> Refusal:
        """The same for another protocol."""
        return replace(self, shape=shape, request_id=request_id)

    def unrun(self) -> Refusal:
        """The same of a call that surely was not run: it went wrong before it was given to anybody."""
        return self if self.ran == "no" else replace(self, ran="no", code=UNAVAILABLE, status=503)


def response(refusal: Refusal) -> HttpResponse:
    """The answer that tells a caller."""
    status = refusal.status
    if refusal.shape is Shape.A2A_REST:
        document: dict[str, Any] = {"error": _status(refusal)}
    elif refusal.shape is Shape.OPENAI:
        said = {"message": str(refusal), "type": _TYPE, "param": None, "code": refusal.rule}
        document = {"error": said, **_details(refusal)}
    elif refusal.shape is Shape.ANTHROPIC:
        kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
        document = {"type": "error", "error": {"type": kind, "message": str(refusal)}, **_details(refusal)}
    elif refusal.shape is Shape.PLAIN:
        document = {"error": str(refusal), **_details(refusal)}
    else:
        error = {"code": refusal.code, "message": str(refusal), "data": _data(refusal)}
        document = {"jsonrpc": "2.0", "id": refusal.request_id, "error": error}
        answers = refusal.shape is Shape.A2A_RPC or (refusal.code in _ANSWERS and status != 404)
        if answers and refusal.request_id is not None:
            status = 200
    headers = {"content-type": JSON, "cache-control": "no-store"}
    if refusal.retry_after:
        headers["retry-after"] = str(_later(refusal))
    if refusal.allow:
        headers["allow"] = refusal.allow
    return HttpResponse(status, headers, orjson.dumps(document))


def _details(refusal: Refusal) -> dict[str, str]:
    found = {"rule": refusal.rule, "ran": refusal.ran}
    return found | ({"message_id": refusal.message_id} if refusal.message_id else {})


def _later(refusal: Refusal) -> int:
    """Whole seconds after which to try again."""
    return max(1, round(refusal.retry_after))


def _data(refusal: Refusal) -> Any:
    """The ``data`` of a JSON-RPC error; A2A has a list of typed details there.

    In MCP's is what HTTP does not say, or cannot say in a stream that has begun.
    """
    if refusal.shape is Shape.A2A_RPC:
        return [_info(refusal)]
    later = {"retry_after": _later(refusal)} if refusal.retry_after else {}
    return {**_details(refusal), "status": refusal.status, **later}


def _info(refusal: Refusal) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.rule.upper().replace(".", "_"),
        "domain": _DOMAIN,
        "metadata": _details(refusal),
    }


def _status(refusal: Refusal) -> dict[str, Any]:
    return {
        "code": refusal.status,
        "status": _STATUS_NAMES.get(refusal.status, "UNKNOWN"),
        "message": str(refusal),
        "details": [_info(refusal)],
    }
