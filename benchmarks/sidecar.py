"""What two sidecars, broker and policy add to an MCP call, beside the SDK's own request and reply.

``python -m benchmarks.sidecar`` takes about a minute and prints JSON. Application, both sidecars and the
SDK's answerer are processes of their own; the sides alternate, one call at a time, medians of all rounds.
*added* is the call through the sidecars less the same call straight to the application; *tokens* is through
sidecars that want tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import uvloop

from benchmarks.children import process, serve, stand_by
from benchmarks.site import brought_up, prepare
from benchmarks.traffic import NAMESPACE
from broker_policy.embedded.layout import Broker, Layout
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.apply import edit
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.material import Material
from mas_nats import Agent, AgentMessage, TlsClientConfig
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy, ToolCheck
from mas_nats.sidecar import Settings, Sidecar

ME = "benchmarks.sidecar"
ROUNDS, CALLS = 6, 60
ARGUMENTS = {"text": "words " * 20}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "echo", "arguments": ARGUMENTS},
}
HEADERS = {
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "echo",
    "accept": "application/json, text/event-stream",
}


class Answerer(Agent[dict[str, Any]]):
    """Under the same id as the MCP server's sidecar, when that does not run."""

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("answer", {"result": message.data})


async def application(_: Any, receive: Any, send: Any) -> None:
    """Answers with what it got, as an MCP server would."""
    body = (await receive())["body"]
    said = json.dumps({"jsonrpc": "2.0", "id": 1, "result": json.loads(body)["params"]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def settings(app: str, port: int, *, tokens: bool) -> Settings:
    base = f"http://127.0.0.1:{port}"
    applications = {
        "a": {"type": "client"},
        "b": {"type": "mcp_server", "base_url": base, "hosts": ["b.test"]},
    }
    return Settings.model_validate({"app": app, "applications": applications, "tokens": tokens})


POLICY = TokenPolicy(
    checks=tuple(ToolCheck),
    applications={
        "a": ApplicationPolicy(type=ApplicationType.CLIENT),
        "b": ApplicationPolicy(type=ApplicationType.MCP_SERVER, tools={"echo": ""}),
    },
)


async def permit(layout: Layout, broker: Broker) -> None:
    """Policy gives tokens for the tool."""
    keys = Material.load(layout.keys).controller
    control = await connect_control_admin(broker.connection(layout, "controller"), keys)
    await edit(
        PolicyStore(control), NAMESPACE, lambda document: document.model_copy(update={"tokens": POLICY})
    )
    await control.close()


async def role(name: str, port: int, *, tokens: bool) -> None:
    if name == "application":
        await serve(application)
        return
    agent = Answerer("b") if name == "answerer" else Sidecar(settings(name, port, tokens=tokens))
    async with agent:
        await stand_by(int(agent.address.rpartition(":")[2]) if isinstance(agent, Sidecar) else 0)


async def timed(call: Callable[[], Awaitable[Any]]) -> list[float]:
    for _ in range(10):
        await call()
    took = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        took.append(time.perf_counter() - started)
    return took


async def main() -> None:
    took: dict[str, list[float]] = {"direct": [], "sidecars": [], "tokens": [], "sdk": []}
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        await permit(layout, broker)
        async with process(ME, "application", folder) as port:
            for _ in range(ROUNDS):
                await one_round(folder, port, broker, layout, took)
    median = {side: statistics.median(each) * 1e3 for side, each in took.items()}
    added = median["sidecars"] - median["direct"]
    result = {f"{side}_ms": round(each, 2) for side, each in median.items()}
    result |= {"added_ms": round(added, 2), "ratio": round(added / median["sdk"], 2)}
    print(json.dumps(result))


async def call(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp", json=CALL, headers=HEADERS)
    assert "result" in answer.json(), answer.text


def straight(port: int) -> httpx2.AsyncClient:
    """A client of the application itself."""
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)


def through(proxy: int) -> httpx2.AsyncClient:
    """A client whose calls go through its own sidecar and the target's."""
    address = f"http://127.0.0.1:{proxy}"
    return httpx2.AsyncClient(base_url="http://b.test", proxy=address, timeout=30, trust_env=False)


async def one_round(
    folder: Path, port: int, broker: Broker, layout: Layout, took: dict[str, list[float]]
) -> None:
    async with process(ME, "b", folder, str(port)), process(ME, "a", folder, str(port)) as proxy:
        for side, http in (("direct", straight(port)), ("sidecars", through(proxy))):
            async with http:
                took[side] += await timed(lambda http=http: call(http))  # type: ignore[misc]
    guarded = (folder, str(port), "tokens")
    async with process(ME, "b", *guarded), process(ME, "a", *guarded) as proxy, through(proxy) as http:
        took["tokens"] += await timed(lambda: call(http))
    certificates = layout.certs / "default" / "agent"
    tls = TlsClientConfig(broker.ca, certificates / "a.pem", certificates / "a.key")
    async with (
        process(ME, "answerer", folder),
        Agent("a", server_addr=broker.url, tls=tls, receive=False) as agent,
    ):

        async def ask() -> None:
            await agent.request("b", "ask", CALL)

        took["sdk"] += await timed(ask)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(
            role(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0, tokens="tokens" in sys.argv[3:])
        )
    else:
        uvloop.run(main())
