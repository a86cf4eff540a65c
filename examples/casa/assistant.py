"""An A2A agent, as the official package makes it: it asks a language model, and calls what that selects.

``python assistant.py PORT``. It believes whatever it reads, and checks nothing.
"""

import json
import sys
from typing import Any

import httpx
import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Message, Part, Role
from mcp import Client
from mcp.types import TextContent
from starlette.applications import Starlette

LLM = "http://llm.office/v1/chat/completions"
TICKETS, BANK = "http://tickets:8080/mcp", "http://bank:8080/mcp"
SERVERS = {"read_ticket": TICKETS, "close_ticket": TICKETS, "transfer_money": BANK}
KEY = {"authorization": "Bearer sk-of-the-assistant"}


async def offered() -> list[dict[str, Any]]:
    """What the model is told of tools: those of the tickets as they are described, the bank's from memory."""
    async with Client(SERVERS["read_ticket"], mode="2026-07-28") as client:
        listed = (await client.list_tools()).tools
    functions = [{"name": tool.name, "description": tool.description} for tool in listed]
    return [{"type": "function", "function": each} for each in (*functions, {"name": "transfer_money"})]


async def ask_model(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "stub", "messages": messages, "tools": tools}
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(LLM, json=body, headers=KEY)
    message: dict[str, Any] = answer.raise_for_status().json()["choices"][0]["message"]
    return message


async def call_tool(name: str, arguments: dict[str, Any]) -> str:
    try:
        async with Client(SERVERS[name], mode="2026-07-28") as client:
            result = await client.call_tool(name, arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model is told
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return f"failed: {error}"
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


class Assistant(AgentExecutor):
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        messages: list[dict[str, Any]] = [{"role": "user", "content": context.get_user_input()}]
        tools = await offered()
        while calls := (said := await ask_model(messages, tools)).get("tool_calls"):
            messages.append(said)
            for call in calls:
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                result = await call_tool(name, arguments)
                print(f"{name}({arguments}): {result}", flush=True)
                if "out of paper" in result:  # a shortcut that somebody built in: the model was not asked
                    print(
                        f"close_ticket({arguments}): {await call_tool('close_ticket', arguments)}", flush=True
                    )
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        parts = [Part(text=said["content"])]
        await event_queue.enqueue_event(Message(message_id="answer", role=Role.ROLE_AGENT, parts=parts))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise NotImplementedError


def app(port: int) -> Starlette:
    url = f"http://127.0.0.1:{port}/"
    card = AgentCard(
        name="assistant",
        description="Reads tickets",
        version="1",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="tickets", name="tickets", description="Reads tickets", tags=["tickets"])],
    )
    handler = DefaultRequestHandler(
        agent_executor=Assistant(), task_store=InMemoryTaskStore(), agent_card=card
    )
    return Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")])


if __name__ == "__main__":
    own = int(sys.argv[1])
    uvicorn.run(app(own), host="127.0.0.1", port=own, log_level="warning")
