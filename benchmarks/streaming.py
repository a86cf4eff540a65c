"""Streamed replies: words a second, and how long the first one takes.

``python -m benchmarks.streaming`` takes about a minute and prints JSON. Writer and readers are processes of
their own; the writer writes words of six bytes as fast as it may, or one each 20 ms as a language model does.
For ``sends`` another process keeps 64 messages in flight to the same writer meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.site import REPOSITORY, brought_up, prepare
from mas_nats import Agent, AgentMessage

WORDS = 20_000
SLOW_WORDS = 100
PAUSE = 0.02
AT_ONCE = (1, 8, 64)
FIRSTS = 50


class Writer(Agent[dict[str, Any]]):
    @Agent.on("tell")
    async def tell(self, message: AgentMessage, data: dict[str, Any]) -> None:
        async with message.reply_stream() as out:
            for _ in range(data["words"]):
                await out.write("words ")
                if data["pause"]:
                    await asyncio.sleep(data["pause"])

    async def on_message(self, message: AgentMessage) -> None:
        """A message that was only sent is in the way, and that is all."""


async def write() -> None:
    async with Writer("b"):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def send() -> None:
    """Keep 64 messages in flight until standard input ends."""
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with Agent("a", receive=False) as agent:
        print("ready", flush=True)

        async def one() -> None:
            while not ended.done():
                await agent.send("b", "note", {"text": "x" * 1000})

        await asyncio.gather(*(one() for _ in range(64)))


async def told(agent: Agent[Any], words: int, pause: float) -> tuple[float, float, int]:
    """Read one answer: seconds until its first chunk and until its end, and chunks."""
    started = time.perf_counter()
    first, chunks, length = 0.0, 0, 0
    async for chunk in agent.stream("b", "tell", {"words": words, "pause": pause}, timeout=300):
        first = first or time.perf_counter() - started
        chunks += 1
        length += len(str(chunk))
    assert length == 6 * words
    return first, time.perf_counter() - started, chunks


async def read() -> None:
    result: dict[str, Any] = {}
    async with Agent("a", receive=False) as agent:
        await told(agent, 100, 0)
        firsts = [(await told(agent, 1, 0))[0] for _ in range(FIRSTS)]
        result["first_ms"] = [round(1e3 * each, 1) for each in (statistics.median(firsts), max(firsts))]
        for count in AT_ONCE:
            started = time.perf_counter()
            words = WORDS * 4 // count if count > 8 else WORDS
            runs = await asyncio.gather(*(told(agent, words, 0) for _ in range(count)))
            took = time.perf_counter() - started
            result[f"fast_{count}"] = {
                "words_per_s": round(count * words / took),
                "frames_per_s": round(sum(run[2] for run in runs) / took),
            }
        for count in AT_ONCE:
            runs = await asyncio.gather(*(told(agent, SLOW_WORDS, PAUSE) for _ in range(count)))
            result[f"paced_{count}"] = {
                "first_ms_p50": round(1e3 * statistics.median(run[0] for run in runs), 1),
                "seconds_p50": round(statistics.median(run[1] for run in runs), 2),
                "frames_per_stream": round(statistics.mean(run[2] for run in runs)),
            }
    print(json.dumps(result), flush=True)


@contextlib.asynccontextmanager
async def process(role: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.streaming", role),
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        await child.wait()


async def measured(folder: Path) -> dict[str, Any]:
    async with process("read", folder) as reader:
        assert reader.stdout is not None
        found: dict[str, Any] = json.loads(await reader.stdout.readline())
        return found


async def main() -> None:
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        async with process("write", folder) as writer:
            assert writer.stdout is not None
            await writer.stdout.readline()
            result = {"alone": await measured(folder)}
            async with process("send", folder) as sender:
                assert sender.stdout is not None
                await sender.stdout.readline()
                result["sends"] = await measured(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    roles = {"write": write, "send": send, "read": read}
    uvloop.run(roles[sys.argv[1]]() if len(sys.argv) > 1 else main())
