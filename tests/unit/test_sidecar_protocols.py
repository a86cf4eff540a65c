"""What a request is, by its body: tables of what passes and what does not, and what hypothesis makes up."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mas_nats.sidecar import a2a, mcp, strict_json
from mas_nats.sidecar.application import Application, Kind
from mas_nats.sidecar.call import Call, Protocol
from mas_nats.sidecar.decision import decide
from mas_nats.sidecar.http_message import HttpRequest
from mas_nats.sidecar.refusal import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    INVALID_REQUEST,
    MCP_VERSION,
    METHOD_NOT_FOUND,
    OUTCOME_UNKNOWN,
    PARSE_ERROR,
    REFUSED,
    TOO_LARGE,
    UNAVAILABLE,
    Refusal,
    Shape,
    response,
)
from mas_nats.sidecar.strict_json import NotStrict

OLD = {"mcp-protocol-version": "2025-11-25", "content-type": "application/json"}
NEW = {"mcp-protocol-version": "2026-07-28", "content-type": "application/json"}
SERVER = Application.model_validate({"type": "mcp_server", "base_url": "http://127.0.0.1:1"})
AGENT = Application.model_validate({"type": "agent", "base_url": "http://127.0.0.1:1"})
CLIENT = Application.model_validate({"type": "client"})


def post(headers: dict[str, str], body: Any, path: str = "/mcp", **more: str) -> HttpRequest:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return HttpRequest("POST", path, "", headers | more, raw)


def rpc(
    method: str, params: dict[str, Any] | None = None, request_id: Any = 1, **more: Any
) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}, **more}


def tool(name: Any = "pay", **more: Any) -> dict[str, Any]:
    return rpc("tools/call", {"name": name, "arguments": {}, **more})


def mirrored(method: str, name: str = "") -> dict[str, str]:
    return NEW | {"mcp-method": method} | ({"mcp-name": name} if name else {})


def refused(request: HttpRequest, *, target: Application = SERVER, caller: Application = CLIENT) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decide(request, caller=caller, target=target)
    return caught.value


PASS = [
    (post(OLD, rpc("initialize", {"protocolVersion": "2025-11-25"})), "initialize", ""),
    (
        post({"content-type": "application/json"}, rpc("initialize", {"protocolVersion": "2025-06-18"})),
        "initialize",
        "",
    ),
    (post(OLD, {"jsonrpc": "2.0", "method": "notifications/initialized"}), "notifications/initialized", ""),
    (post(OLD, tool()), "tools/call", "pay"),
    (post(OLD | {"mcp-method": "tools/call", "mcp-name": "pay"}, tool()), "tools/call", "pay"),
    (post(OLD, {"jsonrpc": "2.0", "id": 3, "result": {}}), "response", ""),
    (post(OLD, rpc("resources/read", {"uri": "file:///ä"})), "resources/read", "file:///ä"),
    (
        HttpRequest("GET", "/mcp", "", OLD | {"accept": "text/event-stream", "mcp-session-id": "a"}),
        "session.stream",
        "",
    ),
    (HttpRequest("DELETE", "/mcp", "", OLD | {"mcp-session-id": "a"}), "session.end", ""),
    (post(mirrored("tools/call", "pay"), tool()), "tools/call", "pay"),
    (post(mirrored("server/discover"), rpc("server/discover")), "server/discover", ""),
    (
        post(
            mirrored("resources/read", "=?base64?" + base64.b64encode("file:///ä".encode()).decode() + "?="),
            rpc("resources/read", {"uri": "file:///ä"}),
        ),
        "resources/read",
        "file:///ä",
    ),
]


@pytest.mark.parametrize(("request_", "operation", "name"), PASS)
def test_mcp_that_passes(request_: HttpRequest, operation: str, name: str):
    call = decide(request_, caller=CLIENT, target=SERVER)
    assert (call.operation, call.name) == (operation, name)
    assert call.message_type == f"mcp:{operation}"


NO_MCP = [
    # what is sent, the rule, the status, the code
    (post(OLD, [tool()]), "batch", 400, -32600),
    (post(NEW, []), "batch", 400, -32600),
    (post(OLD, b"{"), "json", 400, -32700),
    (post(OLD, b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}'), "json", 400, -32700),
    (post(OLD, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}'), "json", 400, -32700),
    (post(OLD, rpc("tools/call", {"name": "pay", "Name": "steal"})), "json", 400, -32602),
    (post(OLD, rpc("ping", extra=1)), "json_rpc", 400, -32600),
    (post(OLD, rpc("ping", request_id=None)), "json_rpc", 400, -32600),
    (post(OLD, rpc("ping", request_id=True)), "json_rpc", 400, -32600),
    (post(OLD, rpc("ping", request_id=1.5)), "json_rpc", 400, -32600),
    (post(OLD, {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}}), "json_rpc", 400, -32600),
    (post(OLD, {"id": 1, "method": "ping"}), "json_rpc", 400, -32600),
    (post(OLD, rpc("tools/steal")), "unknown_method", 501, -32601),
    (post(OLD, rpc("server/discover")), "unknown_method", 501, -32601),
    (post(OLD, rpc("message/send")), "unknown_method", 501, -32601),
    (post(OLD, {"jsonrpc": "2.0", "method": "notifications/steal"}), "unknown_method", 404, -32601),
    (post(mirrored("initialize"), rpc("ping")), "unknown_method", 404, -32601),
    (post(mirrored("ping"), rpc("ping")), "unknown_method", 404, -32601),
    (post(NEW, tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/list", "pay"), tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/call"), tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/call", "balance"), tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/call", "=?base64?cGF5=?="), tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/list", "pay"), rpc("tools/list")), "header_mismatch", 400, -32020),
    (post(OLD | {"mcp-method": "tools/list"}, tool()), "header_mismatch", 400, -32020),
    (post(OLD | {"mcp-name": "balance"}, tool()), "header_mismatch", 400, -32020),
    (post(mirrored("tools/call", "pay") | {"mcp-session-id": "a"}, tool()), "header_mismatch", 400, -32020),
    (
        post(mirrored("tools/call", "pay"), tool(_meta={mcp.VERSION_META: "2025-11-25"})),
        "header_mismatch",
        400,
        -32020,
    ),
    (
        post(OLD, rpc("initialize", {"protocolVersion": "2025-06-18"})),
        "header_mismatch",
        400,
        -32020,
    ),
    (post({"content-type": "application/json"}, tool()), "protocol_version", 400, -32022),
    (post(OLD | {"mcp-protocol-version": "2099-01-01"}, tool()), "protocol_version", 400, -32022),
    (post(OLD | {"content-type": "text/plain"}, tool()), "content_type", 415, -32600),
    (post(OLD, tool(), path="/mcp/admin"), "path", 404, -32600),
    (HttpRequest("GET", "/mcp", "", NEW), "method", 405, -32600),
    (HttpRequest("DELETE", "/mcp", "", NEW), "method", 405, -32600),
    (HttpRequest("PUT", "/mcp", "", OLD), "method", 405, -32600),
    (HttpRequest("GET", "/mcp", "", OLD | {"mcp-session-id": "a"}), "accept", 406, -32600),
    (HttpRequest("DELETE", "/mcp", "", OLD), "session", 400, -32600),
]


ANSWERED = [
    (METHOD_NOT_FOUND, 501),  # where there are sessions
    (INVALID_PARAMS, 400),
    (REFUSED, 403),
    (UNAVAILABLE, 429),
    (UNAVAILABLE, 502),
    (UNAVAILABLE, 503),
    (UNAVAILABLE, 504),
    (OUTCOME_UNKNOWN, 500),
    (OUTCOME_UNKNOWN, 502),
    (OUTCOME_UNKNOWN, 504),
    (TOO_LARGE, 413),
    (TOO_LARGE, 502),
]
"""What MCP has no status for."""
MCPS_OWN = [
    (PARSE_ERROR, 400),
    (INVALID_REQUEST, 400),
    (INVALID_REQUEST, 403),  # a page of a browser
    (INVALID_REQUEST, 404),  # no such session: the client begins anew
    (METHOD_NOT_FOUND, 404),
    (HEADER_MISMATCH, 400),
    (MCP_VERSION, 400),
]


@pytest.mark.parametrize(("code", "status"), ANSWERED + MCPS_OWN)
@pytest.mark.parametrize("request_id", [1, 0, "a", "", None])
def test_the_status_of_a_refusal_in_mcp(code: int, status: int, request_id: str | int | None):
    """A request is answered; of anything else, a notification for one, the status is all there is."""
    refusal = Refusal("r", "t", "", status, code, Shape.MCP, request_id, message_id="m", retry_after=2.4)
    answer = response(refusal)
    document = orjson.loads(answer.body)
    assert answer.status == (200 if (code, status) in ANSWERED and request_id is not None else status)
    assert (document["id"], document["error"]["code"]) == (request_id, code)
    data = {"rule": "r", "ran": "no", "message_id": "m", "status": status, "retry_after": 2}
    assert document["error"]["data"] == data
    assert answer.headers["retry-after"] == "2"
    never = orjson.loads(response(replace(refusal, retry_after=0.0)).body)["error"]["data"]
    assert never == {name: value for name, value in data.items() if name != "retry_after"}


def test_a_response_is_not_answered():
    """Its id is the server's; the client has calls of its own by the same ids."""
    document = {"jsonrpc": "2.0", "id": 1, "result": {}}
    call = decide(post(OLD, document), caller=CLIENT, target=SERVER)
    assert (call.operation, call.request_id, call.document) == ("response", None, document)


@pytest.mark.parametrize(("request_", "rule", "status", "code"), NO_MCP)
def test_mcp_that_does_not(request_: HttpRequest, rule: str, status: int, code: int):
    refusal = refused(request_)
    assert (refusal.rule, refusal.status, refusal.code) == (rule, status, code)
    assert refusal.shape is Shape.MCP
    answer = response(refusal)
    document = orjson.loads(answer.body)
    assert answer.status == (200 if (code, status) in ANSWERED else status)
    assert document["error"]["data"]["status"] == status
    assert document["jsonrpc"] == "2.0"
    assert document["error"]["code"] == code
    assert document["error"]["data"]["rule"] == rule


def called(operation: str = "tools/call", request_id: Any = 1) -> Call:
    return Call(Protocol.MCP, "2025-11-25", operation, Shape.MCP, request_id=request_id)


def result(request_id: Any, **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": {"tools": []}, **more}


def failure(**more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": -32600, "message": "no"}, **more}


ITS_OWN = [
    (called(), result(1)),
    (called(request_id="a"), result("a")),
    (called(), failure(id=1)),
    (called(), failure(id=None)),  # the server could not read it
    (called(), failure()),
    (called(), failure(id="")),  # the official packages for C# and PHP: a session that is not there
    (called(), failure(id="server-error")),  # the official package for Python, before version 2
    (called("notifications/initialized", None), failure(id=None)),
    (called("session.end", None), failure(id=None)),
    (called(), {"error": "invalid_token", "error_description": "expired"}),  # OAuth's
    (called(), rpc("sampling/createMessage", request_id=7)),  # the server asks the client
    (called(), {"jsonrpc": "2.0", "method": "notifications/progress"}),
    (called(), {"detail": "Not Found"}),
    (called(), ""),  # an event without data
    (called("session.stream", None), result(7)),  # said again
]
ANOTHERS = [
    (called(), result(2)),
    (called(), result("1")),
    (called(), result(True)),
    (called(), result(1.0)),
    (called(), result(None)),
    (called(), {"jsonrpc": "2.0", "result": {}}),
    (called(), result([1])),
    (called(), result(2, method="ping")),
    (called(), failure(id=2)),
    (called(), result(None, error={})),
    (called(), result("server-error")),
    (called(request_id="1"), result(1)),
    (called("ping"), result(2)),
    (called("initialize"), result(2)),
    (called("notifications/initialized", None), result(1)),
    (called("notifications/initialized", None), result(None)),
    (called("response", None), result(7)),  # the server chose that id: it may be the one of a list
    (called(), [result(1)]),  # batches are not carried
    (called("session.stream", None), [result(7)]),
]


def test_answers_of_mcp_are_those_of_the_call():
    assert [(call, data) for call, data in ITS_OWN if mcp.strays(call, data)] == []
    assert [(call, data) for call, data in ANOTHERS if not mcp.strays(call, data)] == []


TRICKS = [
    "pay ",
    " pay",
    "pay\n",
    "pay\u200b",
    "p\u0430y",  # a Cyrillic letter
    "\uff50\uff41\uff59",
    "pay/../steal",
    "pay;steal",
    "",
    "x" * 129,
    None,
    1,
    ["pay"],
    {"name": "pay"},
]


@pytest.mark.parametrize("name", TRICKS)
def test_names_of_tools_that_are_tricks(name: Any):
    assert refused(post(OLD, tool(name))).rule == "name"


A2A = {"content-type": "application/json"}
ONE = A2A | {"a2a-version": "1.0"}
A2A_PASS = [
    (post(A2A, rpc("message/send"), "/"), "0.3", "message/send", True),
    (post(A2A | {"a2a-version": "0.3"}, rpc("tasks/get"), "/"), "0.3", "tasks/get", False),
    (post(ONE, rpc("SendMessage"), "/"), "1.0", "SendMessage", True),
    (
        post(A2A | {"a2a-version": "1.0.1"}, rpc("SendStreamingMessage"), "/"),
        "1.0",
        "SendStreamingMessage",
        True,
    ),
    (HttpRequest("GET", "/tasks/t-1", "a2a-version=1.0", {}), "1.0", "GetTask", False),
    (HttpRequest("GET", "/tasks/t-1:subscribe", "", {"a2a-version": "1.0"}), "1.0", "SubscribeToTask", False),
    (post(ONE, {"message": {}}, "/message:send"), "1.0", "SendMessage", True),
    (post(A2A, {"message": {}}, "/v1/message:stream"), "0.3", "message/stream", True),
    (
        post(ONE | {"content-type": "application/a2a+json"}, {}, "/tasks/t-1:cancel"),
        "1.0",
        "CancelTask",
        False,
    ),
    (HttpRequest("POST", "/tasks/t-1:cancel", "", {"a2a-version": "1.0"}), "1.0", "CancelTask", False),
    (HttpRequest("GET", a2a.CARD_PATH), "0.3", "agent-card", False),
]


@pytest.mark.parametrize(("request_", "version", "operation", "acts"), A2A_PASS)
def test_a2a_that_passes(request_: HttpRequest, version: str, operation: str, acts: bool):
    call = decide(request_, caller=CLIENT, target=AGENT)
    assert (call.version, call.operation, call.acts) == (version, operation, acts)


PUSH = {"configuration": {"taskPushNotificationConfig": {"url": "http://x"}}}
PUSHES = [
    {configuration: {name: {"url": "http://x"}}}
    for configuration in ("configuration", "Configuration", "_configuration")
    for name in (
        "pushNotification",  # HTTP+JSON of 0.3
        "push_notification",
        "pushNotificationConfig",
        "taskPushNotificationConfig",
        "task_push_notification_config",  # as the official server of 1.0 takes it, too
        "TaskPushNotificationConfig",
    )
]
NO_A2A = [
    (post(A2A, [rpc("message/send")], "/"), "batch", 400),
    (post(A2A, rpc("message/steal"), "/"), "unknown_method", 404),
    (post(A2A, rpc("tools/call"), "/"), "unknown_method", 404),
    (post(A2A, rpc("SendMessage"), "/"), "header_mismatch", 400),
    (post(ONE, rpc("message/send"), "/"), "header_mismatch", 400),
    (post(A2A | {"a2a-version": "2.0"}, rpc("SendMessage"), "/"), "protocol_version", 400),
    (post(A2A, {"jsonrpc": "2.0", "method": "message/send"}, "/"), "json_rpc", 400),
    (post(A2A, {"jsonrpc": "2.0", "id": 1, "result": {}}, "/"), "json_rpc", 400),
    (post(ONE, rpc("CreateTaskPushNotificationConfig"), "/"), "push_notifications", 501),
    (post(ONE, rpc("SendMessage", PUSH), "/"), "push_notifications", 501),
    (post(ONE, PUSH, "/message:send"), "push_notifications", 501),
    (HttpRequest("GET", "/", "", A2A), "method", 405),
    (HttpRequest("GET", "/message:send", "", ONE), "method", 405),
    (HttpRequest("GET", "/admin", "", ONE), "path", 404),
    (HttpRequest("GET", "/tenant/tasks/1", "", ONE), "path", 404),
    (HttpRequest("GET", "/tasks/..%2f..", "", ONE), "path", 400),
    (HttpRequest("GET", "/tasks/../admin", "", ONE), "path", 400),
    (HttpRequest("GET", "//admin", "", ONE), "path", 400),
    (HttpRequest("GET", "/tasks/" + "a" * 3000, "", ONE), "path", 400),
    (HttpRequest("GET", "/tasks/1", "", {f"mcp-param-{n}": "1" for n in range(65)}), "header", 400),
    (HttpRequest("GET", "/tasks/1", "A2A-Version=0.3", ONE), "header_mismatch", 400),
    (HttpRequest("DELETE", a2a.CARD_PATH), "method", 405),
    (HttpRequest("GET", "/tasks/1", "", {"cookie": "a"}), "header", 400),
    (HttpRequest("GET", "/tasks/1", "", {"a2a-extensions": "a\r\nb: c"}), "header", 400),
]


@pytest.mark.parametrize(("request_", "rule", "status"), NO_A2A)
def test_a2a_that_does_not(request_: HttpRequest, rule: str, status: int):
    refusal = refused(request_, target=AGENT)
    assert (refusal.rule, refusal.status) == (rule, status)
    document = orjson.loads(response(refusal).body)
    assert "error" in document


@pytest.mark.parametrize("said", PUSHES)
def test_push_notifications_are_refused_by_every_name(said: dict[str, Any]):
    for request in (
        post(ONE, rpc("SendMessage", said), "/"),
        post(A2A, rpc("message/send", said), "/"),
        post(ONE, said, "/message:send"),
        post(A2A, said, "/v1/message:stream"),
    ):
        assert refused(request, target=AGENT).rule == "push_notifications"


def test_a_configuration_without_push_notifications_passes():
    for said in ({"blocking": True}, {"pushNotificationConfig": None}, [], None):
        decide(post(ONE, {"configuration": said}, "/message:send"), caller=CLIENT, target=AGENT)


KINDS = {Kind.AGENT: AGENT, Kind.MCP_SERVER: SERVER, Kind.CLIENT: CLIENT}


@pytest.mark.parametrize("target", Kind)
@pytest.mark.parametrize("caller", Kind)
def test_types_of_applications(caller: Kind, target: Kind):
    may = caller is not Kind.MCP_SERVER and target is not Kind.CLIENT
    request = post(OLD, tool()) if target is Kind.MCP_SERVER else post(A2A, rpc("message/send"), "/")
    if may:
        decide(request, caller=KINDS[caller], target=KINDS[target])
    else:
        assert refused(request, caller=KINDS[caller], target=KINDS[target]).rule == "application_type"


def test_nobody_calls_or_is_called_who_is_not_declared():
    for caller, target in ((None, SERVER), (CLIENT, None)):
        with pytest.raises(Refusal) as caught:
            decide(post(OLD, tool()), caller=caller, target=target)
        assert caught.value.rule == "unknown_application"


def test_a2a_errors_of_json_rpc_come_as_a2a_servers_send_them():
    answer = response(refused(post(A2A, rpc("message/steal"), "/"), target=AGENT))
    assert answer.status == 200
    assert orjson.loads(answer.body)["id"] == 1
    rest = response(refused(HttpRequest("GET", "/admin", "", ONE), target=AGENT))
    assert rest.status == 404
    assert orjson.loads(rest.body)["error"]["status"] == "NOT_FOUND"


NOT_STRICT = [
    b'{"a":1,"a":2}',
    b'{"a":{"b":1,"b":1}}',
    b'{"a":NaN}',
    b"[Infinity]",
    b"[1e999]",
    b"[18446744073709551616]",
    b'["\\ud800"]',
    b'{"\\udfff":1}',
    b"\xff",
    b'\xef\xbb\xbf{"a":1}',
    b"{}{}",
    b"",
    b"[" * 65 + b"]" * 65,
    b"[" * 100_000,
]


@pytest.mark.parametrize("raw", NOT_STRICT)
def test_json_that_is_read_in_two_ways(raw: bytes):
    with pytest.raises(NotStrict):
        strict_json.parse(raw)


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcN.", max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSONS)
def test_json_is_read_as_it_was_written(document: Any):
    assert strict_json.parse(orjson.dumps(document)) == document


@given(st.binary(max_size=200))
def test_whatever_is_sent_is_refused_or_a_call(raw: bytes):
    for headers, path, target in ((OLD, "/mcp", SERVER), (NEW, "/mcp", SERVER), (ONE, "/", AGENT)):
        try:
            call = decide(post(headers, raw, path), caller=CLIENT, target=target)
        except Refusal as refusal:
            response(refusal)
        else:
            assert call.operation


@given(
    st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params", "result", "name"]), JSONS),
    st.sampled_from(["tools/call", "tools/list", "initialize", "message/send", "SendMessage", "x"]),
    st.sampled_from([{}, {"mcp-method": "tools/call"}, {"mcp-name": "pay"}, {"a2a-version": "1.0"}]),
)
def test_what_passes_names_what_the_body_says(body: dict[str, Any], method: str, more: dict[str, str]):
    document = {"jsonrpc": "2.0", "id": 1, **body, "method": method}
    for headers, path, target in ((OLD, "/mcp", SERVER), (NEW, "/mcp", SERVER), (A2A, "/", AGENT)):
        try:
            call = decide(post(headers | more, document, path), caller=CLIENT, target=target)
        except Refusal:
            continue
        assert call.operation == document["method"]
        assert call.document == document
        for name in ("mcp-method", "mcp-name"):
            if target is SERVER and name in more:
                assert more[name] in {call.operation, call.name}
