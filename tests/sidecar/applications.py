"""Applications that know nothing of sidecars, made with the official packages, and a way to serve them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Message, Part, Role
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel
from starlette.applications import Starlette


@contextlib.asynccontextmanager
async def serving(app: Any, port: int = 0, **options: Any) -> AsyncIterator[int]:
    """Serve an ASGI application on a loopback port; the port. ``options`` are uvicorn's."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="auto", **options)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


class Account(BaseModel):
    """What is asked for."""

    account: str


class Bank:
    """An MCP server that counts what it did."""

    def __init__(self) -> None:
        self.transfers: list[int] = []
        self.calls = 0
        self.waiting = asyncio.Event()  # somebody waits in ``wait``
        self.left = asyncio.Event()  # and was cancelled there
        self.seen = asyncio.Event()
        server = MCPServer("bank")

        @server.tool()
        def balance(account: str) -> str:
            """How much there is."""
            self.calls += 1
            return f"{account}: 100"

        @server.tool()
        def transfer_money(number: int) -> str:
            """Transfer."""
            self.transfers.append(number)
            return "done"

        @server.tool()
        async def count(to: int, ctx: Context) -> str:
            """Count, with progress."""
            for number in range(to):
                await ctx.report_progress(number + 1, to, f"at {number + 1}")
            return f"counted to {to}"

        @server.tool()
        async def stepwise(ctx: Context) -> str:
            """Make one step, and wait until somebody has seen it."""
            await ctx.report_progress(1, 2, "one")
            await self.seen.wait()
            return "two"

        @server.tool()
        async def in_two(first: str, second: str, ctx: Context) -> str:
            """Say the one, wait until somebody has seen it, and say the other."""
            await ctx.report_progress(1, 2, first)
            await self.seen.wait()
            await ctx.report_progress(2, 2, second)
            return "told"

        @server.tool()
        async def ask_back(ctx: Context) -> str:
            """Ask the client's user."""
            answer = await ctx.elicit("which account?", Account)
            return str(answer.model_dump())

        @server.tool()
        async def change(ctx: Context) -> str:
            """Tell everybody who listens that the tools have changed."""
            await ctx.session.send_tool_list_changed()
            return "changed"

        @server.tool()
        def secret() -> str:
            """Say what must not be said."""
            self.calls += 1
            return "AKIAIOSFODNN7EXAMPLE"

        @server.tool()
        def large(size: int) -> str:
            """Much text."""
            return "é" * size

        @server.tool()
        async def wait() -> str:
            """For ever."""
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
            return ""

        self.server = server

    def app(self, **options: Any) -> Starlette:
        return self.server.streamable_http_app(**options)


class Echo(AgentExecutor):
    """An A2A agent that says what it was told; ``think`` runs before."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.think: Callable[[str], Awaitable[str]] | None = None
        self.traces: dict[str, str] = {}  # traceparent of each text's request

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        text = context.get_user_input()
        self.told.append(text)
        if context.call_context is not None:
            self.traces[text] = context.call_context.state.get("headers", {}).get("traceparent", "")
        answer = await self.think(text) if self.think else f"you said {text}"
        await event_queue.enqueue_event(
            Message(
                message_id="answer",
                role=Role.ROLE_AGENT,
                parts=[Part(text=answer)],
                context_id=context.context_id,
            )
        )

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError

    def app(self, base: str) -> Starlette:
        """Served at ``base``, in both versions and both bindings."""
        interfaces = [
            AgentInterface(url=f"{base}/", protocol_binding=binding, protocol_version=version)
            for version in ("1.0", "0.3")
            for binding in ("JSONRPC", "HTTP+JSON")
        ]
        interfaces.append(
            AgentInterface(url="grpc.example:443", protocol_binding="GRPC", protocol_version="1.0")
        )
        card = AgentCard(
            name="echo",
            description="says what it was told",
            version="1",
            supported_interfaces=interfaces,
            capabilities=AgentCapabilities(streaming=True, push_notifications=True),
            default_input_modes=["text/plain"],
            default_output_modes=["text/plain"],
            skills=[AgentSkill(id="echo", name="echo", description="echo", tags=["echo"])],
        )
        handler = DefaultRequestHandler(agent_executor=self, task_store=InMemoryTaskStore(), agent_card=card)
        return Starlette(
            routes=[
                *create_agent_card_routes(card),
                *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
                *create_rest_routes(handler, enable_v0_3_compat=True),
            ]
        )
