"""A namespace with a client, an agent and an MCP server, each behind its sidecar, on the running broker."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mas_nats.policy import document as policy
from mas_nats.policy.governance import Governance
from mas_nats.sidecar import Settings, Sidecar
from tests.sidecar.applications import Bank, Echo, serving
from tests.system import System

LIMITS = {"begin": 5.0, "heartbeat": 1.0}
ALLOW = {"shop": ["bank", "echo"], "echo": ["bank"], "bank": ["echo"]}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Town:
    """What runs. ``ports``: of the applications."""

    system: System
    namespace: str
    bank: Bank
    echo: Echo
    ports: dict[str, int]
    sidecars: dict[str, Sidecar] = field(default_factory=dict)

    def document(self, **changes: Any) -> dict[str, Any]:
        """The settings, as they stand in a file."""
        applications = {
            "shop": {"type": "client"},
            "echo": {"type": "agent", "base_url": self.base("echo"), "hosts": ["echo.test"]},
            "bank": {
                "type": "mcp_server",
                "base_url": self.base("bank"),
                "hosts": ["bank.test", "bank.test:8080"],
                "idempotent": ["tools/list"],
            },
        }
        return {"applications": applications, "limits": LIMITS, **changes}

    def base(self, app: str) -> str:
        return f"http://127.0.0.1:{self.ports[app]}"

    def settings(self, app: str, **changes: Any) -> Settings:
        return Settings.model_validate({**self.document(**changes), "app": app})

    def sidecar(self, app: str, **changes: Any) -> Sidecar:
        tls = self.system.tls(app, self.namespace)
        return Sidecar(self.settings(app, **changes), server_addr=self.system.broker.url, tls=tls)

    def proxy(self, app: str) -> str:
        """What the application's proxy variable holds."""
        return f"http://{self.sidecars[app].address}"

    async def govern(self, governance: Governance) -> None:
        """Have policy say ``governance``; every worker follows it when this returns."""
        async with self.system.control() as (_, store):
            stored = await store.get(self.namespace)
            assert stored is not None
            changed = stored.document.model_copy(update={"governance": governance})
            await store.wait_confirmed(await store.put(changed, expected=stored.sequence))

    async def start(self, stack: contextlib.AsyncExitStack, *apps: str, **changes: Any) -> None:
        for app in apps:
            self.sidecars[app] = await stack.enter_async_context(self.sidecar(app, **changes))


@pytest.fixture
async def empty_town(system: System) -> AsyncIterator[Town]:
    """The applications run, no sidecar does."""
    limits = policy.Limits(ack_wait=10.0, retry_delay=0.1)
    namespace = await system.namespace(["shop", "echo", "bank"], ALLOW, limits=limits)
    bank, echo = Bank(), Echo()
    echo_port = free_port()
    async with (
        serving(bank.app()) as bank_port,
        serving(echo.app(f"http://127.0.0.1:{echo_port}"), echo_port),
    ):
        yield Town(system, namespace, bank, echo, {"bank": bank_port, "echo": echo_port})


@pytest.fixture
async def town(empty_town: Town) -> AsyncIterator[Town]:
    """Everything runs."""
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, "bank", "echo", "shop")
        yield empty_town


@pytest.fixture
def from_shop(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the client's: its HTTP goes through the client's sidecar, by the usual variables."""
    monkeypatch.setenv("HTTP_PROXY", town.proxy("shop"))
    monkeypatch.setenv("http_proxy", town.proxy("shop"))
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
