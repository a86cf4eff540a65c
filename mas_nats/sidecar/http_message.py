"""HTTP requests and responses, as the rest of the sidecar sees them, and what may be in them.

Source: RFC 9110 and RFC 9112. Names of headers are in lower case throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

JSON = "application/json"
A2A_JSON = "application/a2a+json"
EVENTS = "text/event-stream"

REQUEST_HEADERS = frozenset(
    {
        "accept",
        "accept-language",
        "content-type",
        "if-none-match",
        "last-event-id",
        "mcp-protocol-version",
        "mcp-session-id",
        "mcp-method",
        "mcp-name",
        "a2a-version",
        "a2a-extensions",
        "x-a2a-extensions",
        "traceparent",
        "tracestate",
    }
)
"""What of a request is carried. Nothing else leaves: no cookies, no credentials, no forwarding headers."""
PREFIXES = ("mcp-param-",)
RESPONSE_HEADERS = frozenset(
    {
        "content-type",
        "cache-control",
        "etag",
        "retry-after",
        "allow",
        "mcp-session-id",
        "mcp-protocol-version",
        "a2a-version",
        "a2a-extensions",
        "x-a2a-extensions",
    }
)
"""What of a response is carried."""

_ONCE = frozenset({"host", "authorization", "x-api-key", "api-key"})

MAX_PATH = 2048
MAX_HEADERS = 64
"""Characters of a path, and headers of a request, that are carried."""
_SEGMENT = r"[A-Za-z0-9._~!$&'()*+,;=:@-]+"
PATH = re.compile(rf"/|(?:/{_SEGMENT})+/?")
"""Paths as every program reads them: no percent escapes, no empty segments; dots are looked at apart."""
QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]-]{0,2048}")
VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]{0,2046}[\x21-\x7e])?|")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request with its whole body. ``headers`` holds what may be carried; each name once."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str:
        """The value of a header; "" where there is none."""
        return self.headers.get(name, "")

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return media_type(self.header("content-type"))


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def media_type(content_type: str) -> str:
    """A content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def carried(name: str) -> bool:
    """Whether a request's header is carried."""
    return name in REQUEST_HEADERS or name.startswith(PREFIXES)


def repeated(headers: Iterable[tuple[str, str]]) -> str:
    """The first header that is there twice though one value is meant; "" where there is none."""
    seen: set[str] = set()
    for name, _ in headers:
        if name in seen and (carried(name) or name in _ONCE):
            return name
        seen.add(name)
    return ""


def plain_path(path: str) -> bool:
    """Whether everybody reads this path in the same way."""
    return PATH.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))
