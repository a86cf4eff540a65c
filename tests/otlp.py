"""Where workers export to in tests: OTLP over HTTP, received and kept; or taken and never answered."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WITHIN = 30.0
"""Seconds in which what was done must have been exported."""


@dataclass(frozen=True)
class Span:
    """A span, however it came here; ids in hexadecimal."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    attributes: dict[str, Any]
    links: tuple[str, ...]  # span ids
    begun: int = 0
    ended: int = 0
    failed: bool = False
    events: int = 0
    resource: dict[str, Any] = field(default_factory=dict)


class Receiver:
    """Listens on loopback from the first moment; everything that came is kept."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, dict[str, Any]] = {}  # name -> unit, attributes' keys, resource
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._take(self.path, body, dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    async def until(self, enough: Callable[[list[Span]], Any]) -> Any:
        """What ``enough`` says of the spans, once that is true."""
        async with asyncio.timeout(WITHIN):
            while not (found := enough(list(self.spans))):
                await asyncio.sleep(0.05)
        return found

    def _take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        with self._lock:
            self.raw.append(body)
            self.headers.append(headers)
            if path == "/v1/traces":
                self._traces(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                self._metrics(ExportMetricsServiceRequest.FromString(body))

    def _traces(self, request: Any) -> None:
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            _KINDS[span.kind],
                            _attributes(span.attributes),
                            tuple(link.span_id.hex() for link in span.links),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code == 2,
                            len(span.events),
                            resource,
                        )
                    )

    def _metrics(self, request: Any) -> None:
        for group in request.resource_metrics:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    known = self.metrics.setdefault(metric.name, {"keys": set()})
                    known["unit"], known["resource"] = metric.unit, resource
                    data = getattr(metric, metric.WhichOneof("data"))
                    for point in data.data_points:
                        known["keys"] |= set(_attributes(point.attributes))


_KINDS = ("", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}


class Hanging:
    """Takes connections and never says anything."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        """Connections that hang."""
        return len(self._taken)

    def _take(self) -> None:
        while True:
            try:
                self._taken.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Let go of them."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for each in self._taken:
            each.close()
