"""A client, as the official packages make it: ``python visitor.py ask TEXT``, or ``transfer``."""

import asyncio
import sys

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.types import Message, Part, Role, SendMessageRequest
from mcp import Client
from mcp.types import TextContent


async def ask(text: str) -> str:
    """What the assistant says to ``text``."""
    async with httpx.AsyncClient(timeout=60) as http:
        card = await A2ACardResolver(http, "http://assistant:8000").get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
        message = Message(message_id=text, role=Role.ROLE_USER, parts=[Part(text=text)])
        async for event in client.send_message(SendMessageRequest(message=message)):
            return str(event.message.parts[0].text)
    return ""


async def transfer() -> str:
    """What the bank says to the visitor itself."""
    async with Client("http://bank:8080/mcp", mode="2026-07-28") as client:
        result = await client.call_tool("transfer_money", {"to": "visitor", "amount": 1})
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


if __name__ == "__main__":
    try:
        print(asyncio.run(ask(sys.argv[2]) if sys.argv[1] == "ask" else transfer()))
    except Exception as error:  # noqa: BLE001 - a client tells its user, whatever it is
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        print(f"failed: {error}")
