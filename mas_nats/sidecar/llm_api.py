"""Requests to a language model: which of the known interfaces, and nothing that nobody could see into.

Sources: the OpenAI API (chat completions, responses, embeddings, models) and the Anthropic API (messages),
both as of 2025. Providers that speak one of them are recognised by the end of the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mas_nats.policy.model_answer import OPERATIONS
from mas_nats.sidecar import strict_json
from mas_nats.sidecar.http_message import JSON, MAX_PATH, HttpRequest, plain_path
from mas_nats.sidecar.refusal import REFUSED, Refusal, Shape, response
from mas_nats.sidecar.strict_json import NotStrict


class Interface(StrEnum):
    """How a language model says which tools it selected."""

    CHAT = "chat/completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


_POSTED = tuple(each for each in OPERATIONS if each != "models")
_MODELS = re.compile(r"(?:/[A-Za-z0-9._-]+)*/models(?:/[A-Za-z0-9._:/-]+)?")
_QUERY = re.compile(r"|beta=true|api-version=[A-Za-z0-9.-]{1,40}")
_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]{0,8190}[\x21-\x7e])?|")

HEADERS = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "api-key",
        "authorization",
        "content-type",
        "idempotency-key",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "traceparent",
        "x-api-key",
    }
)
"""What of a request may go to a language model; ``traceparent`` is read and stays here."""
_UNSHOWN = frozenset({"api-key", "authorization", "traceparent", "x-api-key"})
"""What of these policy is not shown: the application's key, and what does not leave."""
ANSWER_HEADERS = frozenset(
    {
        "cache-control",
        "content-type",
        "openai-processing-ms",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
    }
)
"""What of its answer goes to the application, beside the limits."""
ANSWER_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may go to a language model. ``interface`` is None where it can select no tool."""

    operation: str
    interface: Interface | None = None
    document: dict[str, Any] | None = field(default=None, repr=False)


def read(request: HttpRequest) -> Asked:
    """What ``request`` asks.

    Raises:
        Refusal: it is none of the known interfaces, or lets the provider itself call other servers.

    """
    if not plain_path(request.path) or len(request.path) > MAX_PATH or not _QUERY.fullmatch(request.query):
        text = "the path or the query is none of a language model's"
        raise Refusal("llm_path", text, "Use the usual address of the interface, without more in its query")
    for name, value in request.headers.items():
        if name not in HEADERS or not _VALUE.fullmatch(value):
            raise Refusal("header", f"header {name[:40]!r} cannot be taken")
    if request.method == "GET" and _MODELS.fullmatch(request.path) and not request.body:
        return Asked("models")
    operation = next((each for each in _POSTED if request.path.endswith(f"/{each}")), None)
    if operation is None or request.method != "POST":
        text = "this is none of the interfaces of a language model that are carried"
        fix = f"POST to {', '.join(_POSTED)}, or GET models"
        raise Refusal("llm_path", text, fix, status=403, code=REFUSED)
    document = _document(request)
    if any(_outside(document)):
        text = "the request lets the provider call MCP servers by itself, past every check"
        fix = "Give the model functions, and call the servers from the application"
        raise Refusal("llm_outside_tools", text, fix, status=403, code=REFUSED)
    return Asked(operation, Interface(operation) if operation in list(Interface) else None, document)


def shown(request: HttpRequest) -> dict[str, Any]:
    """What leaves beside the body, but for the application's key: it has to pass policy as it is."""
    said: dict[str, Any] = {"path": request.path}
    if request.query:
        said["query"] = request.query
    if fields := {name: value for name, value in request.headers.items() if name not in _UNSHOWN}:
        said["headers"] = fields
    return said


def _document(request: HttpRequest) -> dict[str, Any]:
    if request.media_type != JSON:
        fix = "Send content-type: application/json"
        raise Refusal("content_type", "the body is not declared as JSON", fix, status=415)
    try:
        document = strict_json.parse(request.body)
    except NotStrict as error:
        raise Refusal("json", f"the body cannot be taken: {error}", "Send strict JSON") from None
    if not isinstance(document, dict):
        raise Refusal("json", "the body is no JSON object", "Send an object")
    return document


def _outside(document: dict[str, Any]) -> Iterator[bool]:
    """Whether something in it makes the provider call other servers than itself."""
    yield bool(document.get("mcp_servers"))
    for key in ("tools", "tool_choice"):
        named = document.get(key)
        for each in named if isinstance(named, list) else [named]:
            kind = each.get("type") if isinstance(each, dict) else None
            yield isinstance(kind, str) and kind.strip().lower().startswith("mcp")


def answered(name: str, value: str) -> bool:
    """Whether a header of an answer goes to the application."""
    known = name in ANSWER_HEADERS or name.startswith(ANSWER_PREFIXES)
    return known and len(value) < 2048 and _VALUE.fullmatch(value) is not None


def shape_of(request: HttpRequest) -> Shape:
    """The form in which whoever sent ``request`` expects an error."""
    anthropic = "anthropic-version" in request.headers or request.path.endswith(
        ("/messages", "/messages/count_tokens")
    )
    return Shape.ANTHROPIC if anthropic else Shape.OPENAI


def error_event(interface: Interface, refusal: Refusal) -> bytes:
    """What ends a stream that may not go on; the clients of the interfaces raise it as their API's error."""
    shape = Shape.ANTHROPIC if interface is Interface.MESSAGES else Shape.OPENAI
    name = b"" if interface is Interface.CHAT else b"event: error\n"
    return name + b"data: " + response(refusal.to(shape)).body + b"\n\n"
