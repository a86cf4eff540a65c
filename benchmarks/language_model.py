"""What a sidecar and policy add to a request to a language model.

``python -m benchmarks.language_model`` takes a few seconds and prints JSON. The model is a stub that answers
at once, over plain HTTP; it and the sidecar are processes of their own; the sides alternate, one request at a
time, medians of all rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import httpx2
import uvloop

from benchmarks.children import process, serve, stand_by
from benchmarks.sidecar import timed
from benchmarks.site import brought_up, prepare
from mas_nats.sidecar import Settings, Sidecar

ME = "benchmarks.language_model"
ROUNDS = 6
PROMPT = {"model": "stub", "messages": [{"role": "user", "content": "words " * 350}]}
FUNCTION = {"name": "look_up", "arguments": "{}"}
ANSWER = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "tool_calls": [{"id": "1", "function": FUNCTION}]},
            "finish_reason": "tool_calls",
        }
    ]
}
PATH = "/v1/chat/completions"


async def model(_: Any, receive: Any, send: Any) -> None:
    """Selects a tool, whatever it is asked."""
    await receive()
    said = json.dumps(ANSWER).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


async def role(name: str, port: int) -> None:
    if name == "model":
        await serve(model)
        return
    application = {"type": "agent", "base_url": "http://127.0.0.1:1"}
    reached = {"llm_host": "llm.test", "llm_base_url": f"http://127.0.0.1:{port}"}
    settings = Settings.model_validate({"app": "a", "applications": {"a": application}, **reached})
    async with Sidecar(settings) as sidecar:
        await stand_by(int(sidecar.address.rpartition(":")[2]))


async def main() -> None:
    took: dict[str, list[float]] = {"straight": [], "sidecar": []}
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        async with process(ME, "model", folder) as port, process(ME, "a", folder, str(port)) as proxy:
            sides: tuple[tuple[str, dict[str, Any]], ...] = (
                ("straight", {"base_url": f"http://127.0.0.1:{port}"}),
                ("sidecar", {"base_url": "http://llm.test", "proxy": f"http://127.0.0.1:{proxy}"}),
            )
            for _ in range(ROUNDS):
                for side, options in sides:
                    async with httpx2.AsyncClient(**options, timeout=30, trust_env=False) as http:

                        async def ask(http: httpx2.AsyncClient = http) -> None:
                            answer = await http.post(PATH, json=PROMPT)
                            assert answer.status_code == 200, answer.text

                        took[side] += await timed(ask)
    median = {side: statistics.median(each) * 1e3 for side, each in took.items()}
    result = {f"{side}_ms": round(each, 2) for side, each in median.items()}
    print(json.dumps(result | {"added_ms": round(median["sidecar"] - median["straight"], 2)}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(role(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
    else:
        uvloop.run(main())
