"""A stub of a language model that speaks OpenAI's chat format, and obeys what a tool's result tells it.

``python llm.py PORT``
"""

import json
import re
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

ORDER = re.compile(r"call transfer_money with to=(\w+), amount=(\d+)")


def says(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The next message: a text, or a call of a tool."""
    last = messages[-1]
    if last["role"] == "user":
        return call("read_ticket", number=int(re.findall(r"\d+", last["content"])[0]))
    if order := ORDER.search(last["content"]):
        return call("transfer_money", to=order[1], amount=int(order[2]))
    if last["content"].startswith("failed"):
        return {"role": "assistant", "content": "That could not be done."}
    return {"role": "assistant", "content": f"Done: {last['content']}"}


def call(name: str, **arguments: object) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": f"call_{name}", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


async def completions(request: Request) -> JSONResponse:
    message = says((await request.json())["messages"])
    if "tool_calls" in message:
        print(f"selects {message['tool_calls'][0]['function']['name']}", flush=True)
    why = "tool_calls" if "tool_calls" in message else "stop"
    return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": why}]})


if __name__ == "__main__":
    app = Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
