"""JSON-RPC 2.0 messages, as MCP and A2A use them: one at a time, nothing more in them than belongs there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mas_nats.sidecar import strict_json
from mas_nats.sidecar.http_message import HttpRequest
from mas_nats.sidecar.refusal import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Refusal, Shape
from mas_nats.sidecar.strict_json import NotStrict

_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]{0,99}")
_MAX_ID = 256
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""Names of tools, as MCP 2025-11-25 has them: nothing that looks like another name, or is one elsewhere."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """A message. ``method`` is "" for a response; ``request_id`` None for a notification."""

    document: dict[str, Any]
    method: str
    request_id: str | int | None
    params: dict[str, Any]


def body(request: HttpRequest, shape: Shape, *, code: int = PARSE_ERROR) -> Any:
    """The strict JSON of a body.

    Raises:
        Refusal: it is none, or its content type or encoding is another.

    """
    if request.media_type != "application/json" and not (
        shape is Shape.A2A_REST and request.media_type == "application/a2a+json"
    ):
        fix = "Send content-type: application/json"
        raise Refusal("content_type", "the body is not declared as JSON", fix, status=415, shape=shape)
    try:
        return strict_json.parse(request.body)
    except NotStrict as error:
        text = f"the body cannot be taken: {error}"
        raise Refusal("json", text, "Send strict JSON", code=code, shape=shape) from None


def read(request: HttpRequest, shape: Shape) -> Rpc:
    """The one JSON-RPC message of a body.

    Raises:
        Refusal: it is a batch, or no such message.

    """
    document = body(request, shape)
    if isinstance(document, list):
        raise Refusal(
            "batch", "batches are not taken", "Send one JSON-RPC message in each request", shape=shape
        )
    if not isinstance(document, dict):
        raise Refusal("json_rpc", "the body is no JSON-RPC message", shape=shape)
    request_id = document.get("id")
    if "id" in document and not _is_id(request_id):
        text = f"id must be an integer, or text of at most {_MAX_ID} characters"
        raise Refusal("json_rpc", text, shape=shape)
    if document.get("jsonrpc") != "2.0" or not document.keys() <= _MEMBERS:
        text = "it is no JSON-RPC 2.0 message, or has members that belong to none"
        raise Refusal("json_rpc", text, shape=shape, request_id=request_id)
    if "method" not in document:
        return _response(document, request_id, shape)
    method = document["method"]
    if not isinstance(method, str) or not _METHOD.fullmatch(method) or {"result", "error"} & document.keys():
        raise Refusal("json_rpc", "its method is no method's name", shape=shape, request_id=request_id)
    params = document.get("params", {})
    if not isinstance(params, dict):
        raise Refusal(
            "json_rpc", "params must be an object", code=INVALID_PARAMS, shape=shape, request_id=request_id
        )
    _require_distinct(params, shape, request_id)
    return Rpc(document, method, request_id, params)


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_ID
    return isinstance(value, int) and not isinstance(value, bool)


def _response(document: dict[str, Any], request_id: Any, shape: Shape) -> Rpc:
    if "id" not in document or ("result" in document) == ("error" in document) or "params" in document:
        raise Refusal("json_rpc", "it is neither a request nor a response", shape=shape, code=INVALID_REQUEST)
    return Rpc(document, "", request_id, {})


def _require_distinct(params: dict[str, Any], shape: Shape, request_id: str | int | None) -> None:
    """Refuse names that differ in case only: some programs take them for the same."""
    if len({name.casefold() for name in params}) != len(params):
        raise Refusal(
            "json",
            "two names in params differ in case only",
            "Send each name once",
            code=INVALID_PARAMS,
            shape=shape,
            request_id=request_id,
        )
