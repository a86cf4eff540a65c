"""``/metrics``, ``/healthz`` and ``/readyz`` of a worker, over HTTP/1.1 on one port.

No web framework: three paths, no bodies, one answer a connection. Whoever sends more than a short request, or
takes longer than ``PATIENCE`` seconds for it, is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds in which a request must have come."""
MOST_BYTES = 8_192
"""Bytes of a request's head."""
MOST_AT_ONCE = 32
"""Connections at once."""
_TEXT = "text/plain; charset=utf-8"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered."""

    status: int
    body: bytes
    kind: str = _TEXT


_OK = Answer(200, b"ok\n")


class Port:
    """A worker's port.

    ``metrics`` gives the content of ``/metrics`` and its type; ``trouble`` says why the worker is not ready.
    ``token``: needed for ``/metrics`` where it is not empty.
    """

    def __init__(
        self, *, metrics: Callable[[], tuple[bytes, str]], trouble: Callable[[], str], token: str = ""
    ) -> None:
        self._metrics = metrics
        self._trouble = trouble
        self._token = token
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: somebody else has the port.

        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=MOST_BYTES)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_AT_ONCE:
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    answer = await self._answer(head.decode("latin-1"))
                    writer.write(_encoded(answer, with_body=not head.startswith(b"HEAD ")))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # whoever it was is let go
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: str) -> Answer:
        first, *lines = head.split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            return Answer(400, b"this is no request\n")
        if words[0] not in ("GET", "HEAD"):
            return Answer(405, b"only GET and HEAD\n")
        match words[1].partition("?")[0]:
            case "/healthz":
                return _OK
            case "/readyz":
                trouble = self._trouble()
                return Answer(503, f"{trouble}\n".encode()) if trouble else _OK
            case "/metrics":
                return await self._measured(lines)
        return Answer(404, b"there are /metrics, /healthz and /readyz\n")

    async def _measured(self, lines: list[str]) -> Answer:
        if self._token and not self._shown(lines):
            return Answer(401, b"a bearer token is needed: gateway.telemetry.metrics_token\n")
        return Answer(200, *await asyncio.to_thread(self._metrics))

    def _shown(self, lines: list[str]) -> bool:
        """Whether the request has the token."""
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() == "authorization":
                scheme, _, token = value.strip().partition(" ")
                said = token.strip().encode("latin-1")
                return scheme.lower() == "bearer" and hmac.compare_digest(said, self._token.encode())
        return False


def _encoded(answer: Answer, *, with_body: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if answer.status == 401:
        lines.append("WWW-Authenticate: Bearer")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head + answer.body if with_body else head
