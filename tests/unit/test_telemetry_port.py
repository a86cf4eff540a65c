"""The port of a worker: three paths, a token, and callers that mean no good."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from broker_policy.audit.projector import Lag
from broker_policy.embedded.ports import LOOPBACK, free_port
from broker_policy.telemetry import health
from broker_policy.telemetry import port as module
from broker_policy.telemetry.port import MOST_AT_ONCE, MOST_BYTES, Port
from broker_policy.telemetry.worker import WorkerTelemetry
from mas_nats.telemetry.settings import TelemetrySettings

METRICS = b"mas_worker_ready 1.0\n"


class Worker:
    def __init__(self) -> None:
        self.trouble = ""
        self.number = free_port()
        self.port = Port(metrics=lambda: (METRICS, "text/plain"), trouble=lambda: self.trouble, token="")

    async def ask(self, head: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(LOOPBACK, self.number)
        try:
            async with asyncio.timeout(30):
                writer.write(head)
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str, *lines: str) -> tuple[int, bytes]:
        head = "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *lines, "", "")).encode()
        first, _, body = (await self.ask(head)).partition(b"\r\n\r\n")
        return int(first.split()[1]), body


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = Worker()
    await made.port.start(LOOPBACK, made.number)
    yield made
    await made.port.stop()


async def test_it_is_alive_and_ready_until_it_says_why_not(worker: Worker):
    assert await worker.get("/healthz") == (200, b"ok\n")
    assert await worker.get("/readyz") == (200, b"ok\n")
    worker.trouble = "policy cannot be confirmed"
    assert await worker.get("/readyz?verbose") == (503, b"policy cannot be confirmed\n")
    assert await worker.get("/healthz") == (200, b"ok\n")
    assert await worker.get("/metrics") == (200, METRICS)
    answer = await worker.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert f"Content-Length: {len(METRICS)}".encode() in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 401),
        (("Authorization: Bearer wrong",), 401),
        (("Authorization: Basic secret",), 401),
        (("Authorization: Bearer",), 401),
        (("authorization: bearer  secret",), 200),
        (("Authorization: Bearer secret",), 200),
        (("Authorization: Bearer \xff",), 401),
    ],
)
async def test_a_token_guards_metrics_and_only_them(worker: Worker, lines: tuple[str, ...], status: int):
    worker.port._token = "secret"
    assert (await worker.get("/metrics", *lines))[0] == status
    assert (await worker.get("/healthz"))[0] == 200
    assert (await worker.get("/readyz"))[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x00\xff\r\n\r\n", b"400"),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", b"404"),
        (b"GET //healthz HTTP/1.1\r\n\r\n", b"404"),
    ],
)
async def test_everything_else_is_refused(worker: Worker, head: bytes, status: bytes):
    assert (await worker.ask(head)).split()[1] == status


async def test_who_sends_too_much_or_nothing_is_let_go(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    assert await worker.ask(b"GET / HTTP/1.1\r\n" + b"x" * 2 * MOST_BYTES) == b""
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    assert await worker.ask(b"GET /healthz HTTP/1.1\r\n") == b""
    assert await worker.get("/healthz") == (200, b"ok\n")


async def test_many_that_say_nothing_leave_it_room_again(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    idle = [await asyncio.open_connection(LOOPBACK, worker.number) for _ in range(MOST_AT_ONCE)]
    async with asyncio.timeout(30):
        while not (await worker.ask(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200"):
            await asyncio.sleep(0.05)
    for _, writer in idle:
        writer.close()


async def test_a_port_that_is_taken_is_an_error(worker: Worker):
    with pytest.raises(OSError, match="in use"):
        await Port(metrics=lambda: (b"", ""), trouble=str).start(LOOPBACK, worker.number)


class Served:
    nc = None

    async def lag(self) -> Lag:
        return Lag(3, 0.5)

    def circuits(self) -> Counter[str]:
        return Counter(open=2)


async def test_metrics_and_readiness_say_the_same_also_while_it_stops(monkeypatch: pytest.MonkeyPatch):
    async def answers(_: object) -> int:
        return 1

    monkeypatch.setattr(health.log, "last_sequence", answers)
    port = Worker()
    telemetry = WorkerTelemetry(TelemetrySettings(), worker="w1", port=port.number)

    async def ready() -> tuple[int, bool]:
        lines = (await port.get("/metrics"))[1].splitlines()
        return (await port.get("/readyz"))[0], b"mas_worker_ready 1.0" in lines

    await telemetry.start(lambda: {"default": Served()}, stale=lambda: False)
    async with asyncio.timeout(30):
        while (await ready()) != (200, True):
            await asyncio.sleep(0.05)
    metrics = (await port.get("/metrics"))[1]
    assert b'mas_audit_waiting{mas_namespace="default"} 3.0' in metrics
    assert b'mas_circuits{mas_circuit_state="open",mas_namespace="default"} 2.0' in metrics
    await telemetry.end_looking()
    assert await ready() == (503, False)
    await telemetry.stop()
