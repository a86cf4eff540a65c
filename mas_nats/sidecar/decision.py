"""The one function that says what a request is and whether it may pass. Both sides of a call ask it."""

from __future__ import annotations

from mas_nats.sidecar import a2a, mcp
from mas_nats.sidecar.application import Application, Kind
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.http_message import (
    MAX_HEADERS,
    MAX_PATH,
    QUERY,
    VALUE,
    HttpRequest,
    carried,
    plain_path,
)
from mas_nats.sidecar.refusal import REFUSED, Refusal, Shape


def decide(request: HttpRequest, *, caller: Application | None, target: Application | None) -> Call:
    """What ``request`` of ``caller`` to ``target`` is; None stands for an application nobody declared.

    Raises:
        Refusal: it may not pass; the rule is named.

    """
    if caller is None or target is None:
        who = "caller" if caller is None else "target"
        fix = "Declare it among the applications"
        raise _denied("unknown_application", f"the {who} is not one of the applications", fix)
    if not caller.type.calls:
        raise _denied("application_type", f"an application of type {caller.type} calls nobody")
    if target.type is Kind.CLIENT:
        raise _denied("application_type", "an application of type client is called by nobody")
    _require_plain(request)
    protocol, read = (Protocol.A2A, a2a.read)
    if target.type is Kind.MCP_SERVER:
        protocol, read = Protocol.MCP, mcp.read
    if caller.protocols is not None and protocol not in caller.protocols:
        text = f"the caller may not speak {protocol}"
        raise _denied("protocol", text, "Add it to allowedProtocols of its CASAPolicy")
    return read(request, target.path)


def _require_plain(request: HttpRequest) -> None:
    """Refuse what one program reads in this way and another in that."""
    if not plain_path(request.path) or len(request.path) > MAX_PATH or not QUERY.fullmatch(request.query):
        fix = "Send a path without percent escapes, dots and empty segments"
        raise Refusal("path", "the path or the query cannot be taken", fix, shape=Shape.PLAIN)
    if len(request.headers) > MAX_HEADERS:
        raise Refusal("header", f"there are more than {MAX_HEADERS} headers", shape=Shape.PLAIN)
    for name, value in request.headers.items():
        if not carried(name) or not VALUE.fullmatch(value):
            raise Refusal("header", f"header {name[:40]!r} cannot be taken", shape=Shape.PLAIN)


def _denied(rule: str, text: str, fix: str = "") -> Refusal:
    return Refusal(rule, text, fix, status=403, code=REFUSED)
