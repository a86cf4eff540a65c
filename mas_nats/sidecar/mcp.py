"""MCP over streamable HTTP: which message a request carries, decided by its body.

Sources: the Model Context Protocol, revisions 2025-11-25 (initialize, ``Mcp-Session-Id``, GET and DELETE) and
2026-07-28 (POST only; ``Mcp-Method`` and ``Mcp-Name`` mirror the body).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from mas_nats.sidecar import jsonrpc
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.http_message import EVENTS, HttpRequest
from mas_nats.sidecar.jsonrpc import NAME, Rpc
from mas_nats.sidecar.refusal import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MCP_VERSION,
    METHOD_NOT_FOUND,
    Refusal,
    Shape,
)

WITH_SESSIONS = ("2025-06-18", "2025-11-25")
"""Revisions that begin with ``initialize``. The older one differs in nothing that matters here."""
WITHOUT_SESSIONS = ("2026-07-28",)

_COMMON = frozenset(
    {
        "completion/complete",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "tools/call",
        "tools/list",
    }
)
REQUESTS = {
    True: _COMMON
    | {"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"},
    False: _COMMON | {"server/discover", "subscriptions/listen"},
}
"""The requests of a revision with sessions (True) and of one without."""
NOTIFICATIONS = {
    True: frozenset(
        {
            "notifications/cancelled",
            "notifications/initialized",
            "notifications/progress",
            "notifications/roots/list_changed",
        }
    ),
    False: frozenset({"notifications/cancelled"}),
}
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Where an operation names what it is about; the value of ``Mcp-Name``."""
VERSION_META = "io.modelcontextprotocol/protocolVersion"

_NOT_READ = (None, "", "server-error")
"""Ids of errors about a request whose id was not read: that of JSON-RPC, that of the official packages for C#
and PHP, and that of the one for Python before version 2."""

_SESSION = re.compile(r"[\x21-\x7e]{1,256}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]{1,2048}")
_BASE64 = re.compile(r"=\?base64\?(?P<payload>[A-Za-z0-9+/=]*)\?=")


def read(request: HttpRequest, endpoint: str) -> Call:
    """What ``request`` is.

    Raises:
        Refusal: it is nothing that MCP has, or its headers say something else than its body.

    """
    if request.path.rstrip("/") != endpoint.rstrip("/") or request.query:
        raise _refusal(
            "path", f"an MCP server is spoken to at {endpoint}", "Use that path, without a query", status=404
        )
    if request.method == "POST":
        return _message(request)
    version = request.header("mcp-protocol-version")
    if request.method not in {"GET", "DELETE"} or version in WITHOUT_SESSIONS:
        raise _refusal(
            "method", f"{request.method} is not used here", "Send a POST", status=405, allow="POST"
        )
    _require_version(version, WITH_SESSIONS)
    _require_session(request)
    if request.body:
        raise _refusal("body", f"a {request.method} has no body")
    if request.method == "DELETE":
        return Call(Protocol.MCP, version, "session.end", Shape.MCP)
    if EVENTS not in request.header("accept"):
        raise _refusal("accept", "a GET asks for a stream of events", f"Send accept: {EVENTS}", status=406)
    return Call(Protocol.MCP, version, "session.stream", Shape.MCP, standing=True)


def strays(call: Call, data: Any) -> bool:
    """Whether ``data``, in an answer to ``call``, answers another call, or several at once.

    A client takes it for the answer to whichever call has its id. Only on the stream of a session it may come
    for any: what was missed is said there again.
    """
    if isinstance(data, list):
        return True
    if not isinstance(data, dict) or not {"result", "error"} & data.keys():
        return False
    if call.operation == "session.stream":
        return False
    said, wanted = data.get("id"), call.request_id
    if said in _NOT_READ and "result" not in data:
        return False
    return wanted is None or type(said) is not type(wanted) or said != wanted


def _message(request: HttpRequest) -> Call:
    message = jsonrpc.read(request, Shape.MCP)
    version = request.header("mcp-protocol-version")
    if message.method == "initialize":
        version = _initialized_version(message, version)
    else:
        _require_version(version, WITH_SESSIONS + WITHOUT_SESSIONS, message.request_id)
    sessions = version in WITH_SESSIONS
    if not message.method:
        return _response(message, version, sessions=sessions)
    known = REQUESTS if "id" in message.document else NOTIFICATIONS
    if message.method not in known[sessions]:
        kind = "request" if "id" in message.document else "notification"
        text = f"MCP {version} has no {kind} of this name"
        # Where there are sessions, a request that is answered with 404 is told that its session is over.
        status = 501 if sessions and "id" in message.document else 404
        raise _refusal("unknown_method", text, "", message, status=status, code=METHOD_NOT_FOUND)
    name = _name(message)
    _require_mirrored(request, message, name, required=not sessions and "id" in message.document)
    if sessions:
        _require_session(request, optional=True)
    else:
        _require_no_session(request, message)
        _require_version_in_body(message, version)
    return Call(
        Protocol.MCP,
        version,
        message.method,
        Shape.MCP,
        request_id=message.request_id,
        name=name,
        document=message.document,
        acts=message.method in NAMED,
        standing=message.method == "subscriptions/listen",
    )


def _response(message: Rpc, version: str, *, sessions: bool) -> Call:
    if not sessions:
        raise _refusal("json_rpc", f"MCP {version} has no responses of a client")
    # Its id is the server's: an error with it would look like the answer to a call of the client.
    return Call(Protocol.MCP, version, "response", Shape.MCP, document=message.document)


def _initialized_version(message: Rpc, header: str) -> str:
    """The revision that a client asks for; what the server answers is between the two."""
    asked = message.params.get("protocolVersion")
    if "id" not in message.document or not isinstance(asked, str):
        raise _refusal("json_rpc", "initialize names a protocolVersion", "", message, code=INVALID_PARAMS)
    if header and header != asked:
        raise _mismatch("mcp-protocol-version", message)
    _require_version(asked, WITH_SESSIONS, message.request_id)
    return asked


def _name(message: Rpc) -> str:
    """The tool, prompt or resource, if it is one everybody reads in the same way."""
    field = NAMED.get(message.method)
    if field is None:
        return ""
    name = message.params.get(field)
    pattern = NAME if message.method == "tools/call" else _TEXT
    if not isinstance(name, str) or not pattern.fullmatch(name) or name != name.strip():
        what = f"{field} of {message.method} is no name that can be taken"
        fix = "Use 1-128 of A-Z, a-z, 0-9, '_', '-' and '.'" if pattern is NAME else "Use visible characters"
        raise _refusal("name", what, fix, message, code=INVALID_PARAMS)
    return name


# -- headers ---------------------------------------------------------------------------------------


def _require_version(version: str, known: tuple[str, ...], request_id: str | int | None = None) -> None:
    if version not in known:
        raise Refusal(
            "protocol_version",
            "mcp-protocol-version names none of the revisions that are carried"
            if version
            else "it is missing",
            f"Use one of {', '.join(known)}",
            code=MCP_VERSION,
            shape=Shape.MCP,
            request_id=request_id,
        )


def _require_session(request: HttpRequest, *, optional: bool = False) -> None:
    session = request.header("mcp-session-id")
    if not session and optional:
        return
    if not _SESSION.fullmatch(session):
        raise _refusal("session", "mcp-session-id is missing, or no id", "Begin with initialize")


def _require_no_session(request: HttpRequest, message: Rpc) -> None:
    for name in ("mcp-session-id", "last-event-id"):
        if request.header(name):
            raise _mismatch(name, message)


def _require_mirrored(request: HttpRequest, message: Rpc, name: str, *, required: bool) -> None:
    """Refuse headers that say something else than the body; the body is what counts."""
    method = request.header("mcp-method")
    if method != message.method and (method or required):
        raise _mismatch("mcp-method", message)
    shown = request.header("mcp-name")
    if (shown or (required and name)) and _decoded(shown) != name:
        raise _mismatch("mcp-name", message)


def _require_version_in_body(message: Rpc, version: str) -> None:
    meta = message.params.get("_meta")
    said: Any = meta.get(VERSION_META, version) if isinstance(meta, dict) else version
    if said != version:
        raise _mismatch("mcp-protocol-version", message)


def _decoded(value: str) -> str | None:
    """The value of a header; None where its encoding is broken (MCP 2026-07-28, header values)."""
    found = _BASE64.fullmatch(value)
    if found is None:
        return value
    payload = found["payload"]
    try:
        raw = base64.b64decode(payload, validate=True)
        return raw.decode() if base64.b64encode(raw).decode() == payload else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _mismatch(header: str, message: Rpc) -> Refusal:
    return _refusal(
        "header_mismatch",
        f"{header} is missing, or says something else than the body",
        "Send what the body says",
        message,
        code=HEADER_MISMATCH,
    )


def _refusal(
    rule: str,
    text: str,
    fix: str = "",
    message: Rpc | None = None,
    *,
    status: int = 400,
    code: int = INVALID_REQUEST,
    allow: str = "",
) -> Refusal:
    request_id = message.request_id if message else None
    return Refusal(
        rule, text, fix, status=status, code=code, shape=Shape.MCP, request_id=request_id, allow=allow
    )
