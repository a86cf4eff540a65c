"""A2A over JSON-RPC and HTTP+JSON: what a request asks for, decided by its body and path.

Source: the Agent2Agent protocol, versions 0.3 and 1.0. A request without ``A2A-Version`` is one of 0.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from mas_nats.sidecar import jsonrpc
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.http_message import HttpRequest
from mas_nats.sidecar.refusal import (
    A2A_VERSION,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    PUSH_NOT_SUPPORTED,
    Refusal,
    Shape,
)

_PUSHES = frozenset({"pushnotification", "pushnotificationconfig", "taskpushnotificationconfig"})
"""Members of a message's configuration, in any version and spelling, that name an address to call."""

CARD_PATH = "/.well-known/agent-card.json"
VERSIONS = ("0.3", "1.0")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of an operation."""

    acts: bool = False
    streams: bool = False
    card: bool = False
    push: bool = False  # asks the agent to call an address: nobody could carry that call


_SEND, _STREAM = _Kind(acts=True), _Kind(acts=True, streams=True)
_READ, _PUSH, _CARD = _Kind(), _Kind(push=True), _Kind(card=True)

METHODS: dict[str, dict[str, _Kind]] = {
    "0.3": {
        "message/send": _SEND,
        "message/stream": _STREAM,
        "tasks/get": _READ,
        "tasks/cancel": _READ,
        "tasks/resubscribe": _Kind(streams=True),
        "tasks/pushNotificationConfig/set": _PUSH,
        "tasks/pushNotificationConfig/get": _READ,
        "tasks/pushNotificationConfig/list": _READ,
        "tasks/pushNotificationConfig/delete": _READ,
        "agent/getAuthenticatedExtendedCard": _CARD,
    },
    "1.0": {
        "SendMessage": _SEND,
        "SendStreamingMessage": _STREAM,
        "GetTask": _READ,
        "ListTasks": _READ,
        "CancelTask": _READ,
        "SubscribeToTask": _Kind(streams=True),
        "CreateTaskPushNotificationConfig": _PUSH,
        "GetTaskPushNotificationConfig": _READ,
        "ListTaskPushNotificationConfigs": _READ,
        "DeleteTaskPushNotificationConfig": _READ,
        "GetExtendedAgentCard": _CARD,
    },
}
"""JSON-RPC methods by version."""

_TASK = r"/tasks/[A-Za-z0-9._~-]{1,128}"
_CONFIG = rf"{_TASK}/pushNotificationConfigs"
_ROUTES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "0.3": (
        ("POST", r"/v1/message:send", "message/send"),
        ("POST", r"/v1/message:stream", "message/stream"),
        ("GET", rf"/v1{_TASK}", "tasks/get"),
        ("POST", rf"/v1{_TASK}:cancel", "tasks/cancel"),
        ("GET", rf"/v1{_TASK}:subscribe", "tasks/resubscribe"),
        ("POST", rf"/v1{_TASK}:subscribe", "tasks/resubscribe"),
        ("POST", rf"/v1{_CONFIG}", "tasks/pushNotificationConfig/set"),
        ("GET", rf"/v1{_CONFIG}", "tasks/pushNotificationConfig/list"),
        ("GET", rf"/v1{_CONFIG}/[A-Za-z0-9._~-]{{1,128}}", "tasks/pushNotificationConfig/get"),
        ("GET", r"/v1/card", "agent/getAuthenticatedExtendedCard"),
    ),
    "1.0": (
        ("POST", r"/message:send", "SendMessage"),
        ("POST", r"/message:stream", "SendStreamingMessage"),
        ("GET", r"/tasks", "ListTasks"),
        ("GET", _TASK, "GetTask"),
        ("POST", rf"{_TASK}:cancel", "CancelTask"),
        ("GET", rf"{_TASK}:subscribe", "SubscribeToTask"),
        ("POST", rf"{_TASK}:subscribe", "SubscribeToTask"),
        ("POST", _CONFIG, "CreateTaskPushNotificationConfig"),
        ("GET", _CONFIG, "ListTaskPushNotificationConfigs"),
        ("GET", rf"{_CONFIG}/[A-Za-z0-9._~-]{{1,128}}", "GetTaskPushNotificationConfig"),
        ("DELETE", rf"{_CONFIG}/[A-Za-z0-9._~-]{{1,128}}", "DeleteTaskPushNotificationConfig"),
        ("GET", r"/extendedAgentCard", "GetExtendedAgentCard"),
    ),
}
ROUTES = {
    version: tuple((method, re.compile(path), operation) for method, path, operation in routes)
    for version, routes in _ROUTES.items()
}
"""HTTP+JSON: method, path, and the operation by its JSON-RPC name, by version."""


def read(request: HttpRequest, endpoint: str) -> Call:
    """What ``request`` is.

    Raises:
        Refusal: it is nothing that A2A has, or its parts contradict each other.

    """
    if request.path == CARD_PATH:
        return _card(request)
    if request.path == endpoint:
        return _rpc(request)
    return _rest(request)


def _card(request: HttpRequest) -> Call:
    if request.method != "GET" or request.query or request.body:
        text = "an agent card is asked for by a GET without query and body"
        raise Refusal("method", text, status=405, allow="GET")
    return Call(Protocol.A2A, _said_version(request, Shape.PLAIN), "agent-card", Shape.PLAIN, card=True)


def _rpc(request: HttpRequest) -> Call:
    shape = Shape.A2A_RPC
    if request.method != "POST":
        text = "JSON-RPC is spoken by POST"
        raise Refusal("method", text, "Send a POST", status=405, shape=shape, allow="POST")
    message = jsonrpc.read(request, shape)
    request_id = message.request_id
    if request_id is None or not message.method:
        raise Refusal("json_rpc", "A2A has requests only: with method and id", shape=shape)
    version = next((each for each in VERSIONS if message.method in METHODS[each]), None)
    if version is None:
        raise Refusal(
            "unknown_method",
            "A2A has no method of this name",
            status=404,
            code=METHOD_NOT_FOUND,
            shape=shape,
            request_id=request_id,
        )
    _require_version(request, version, shape, request_id)
    call = Call(
        Protocol.A2A, version, message.method, shape, request_id=request_id, document=message.document
    )
    return _checked(call, METHODS[version][message.method], message.params)


def _rest(request: HttpRequest) -> Call:
    shape = Shape.A2A_REST
    other = []
    for version, routes in ROUTES.items():
        for method, path, operation in routes:
            if not path.fullmatch(request.path):
                continue
            if method != request.method:
                other.append(method)
                continue
            _require_version(request, version, shape)
            params: Any = {}
            document: Any = None
            if request.method == "POST" and request.body:
                document = params = jsonrpc.body(request, shape, code=INVALID_PARAMS)
                if not isinstance(params, dict):
                    raise Refusal("json", "the body must be an object", shape=shape)
            elif request.body:
                raise Refusal("body", f"a {request.method} has no body", shape=shape)
            call = Call(Protocol.A2A, version, operation, shape, document=document)
            return _checked(call, METHODS[version][operation], params)
    if other:
        allow = ", ".join(sorted(set(other)))
        text = f"{request.method} is not used here"
        raise Refusal("method", text, f"Send {allow}", status=405, shape=shape, allow=allow)
    raise Refusal("path", "A2A has nothing at this path", "Look at the agent card", status=404, shape=shape)


def _checked(call: Call, kind: _Kind, params: dict[str, Any]) -> Call:
    if kind.push or _asks_for_push(params):
        raise Refusal(
            "push_notifications",
            "an agent behind a sidecar can call no address of its caller's",
            "Stream the answer, or ask for the task",
            status=501,
            code=PUSH_NOT_SUPPORTED,
            shape=call.shape,
            request_id=call.request_id,
        )
    return replace(
        call, acts=kind.acts, causes=kind.acts, standing=kind.streams and not kind.acts, card=kind.card
    )


def _asks_for_push(params: dict[str, Any]) -> bool:
    """Whether a message names an address to call: in JSON of protocol buffers a field has two names each."""
    return any(
        value and _bare(name) in _PUSHES
        for member, configuration in params.items()
        if _bare(member) == "configuration" and isinstance(configuration, dict)
        for name, value in configuration.items()
    )


def _bare(name: str) -> str:
    return name.lower().replace("_", "")


def _said_version(request: HttpRequest, shape: Shape, request_id: str | int | None = None) -> str:
    """The version that header and query name, without a patch number; "0.3" where neither does."""
    query = [value for name, value in parse_qsl(request.query) if name.lower() == "a2a-version"]
    said = {value for value in (request.header("a2a-version"), *query) if value}
    if len(said) > 1 or len(query) > 1:
        text = "A2A-Version is there twice, and differs"
        raise Refusal(
            "header_mismatch", text, "Send it once", code=HEADER_MISMATCH, shape=shape, request_id=request_id
        )
    version = next(iter(said), VERSIONS[0])
    found = re.fullmatch(r"(\d{1,3}\.\d{1,3})(?:\.\d{1,3})?", version)
    if found is None or found[1] not in VERSIONS:
        raise Refusal(
            "protocol_version",
            "A2A-Version names none of the versions that are carried",
            f"Use one of {', '.join(VERSIONS)}",
            code=A2A_VERSION,
            shape=shape,
            request_id=request_id,
        )
    return found[1]


def _require_version(
    request: HttpRequest, version: str, shape: Shape, request_id: str | int | None = None
) -> None:
    """Refuse a request whose version says another one than what it asks for."""
    if _said_version(request, shape, request_id) != version:
        raise Refusal(
            "header_mismatch",
            f"this is of A2A {version}, and A2A-Version says another one",
            f"Send A2A-Version: {version}",
            code=A2A_VERSION,
            shape=shape,
            request_id=request_id,
        )
