"""A soak: everything runs under load for a while, and the memory of each process is watched.

``python -m tests.soak --seconds 1200`` prints a table and writes ``build/soak.json``. The slope is that of a
straight line through the last third. Until then what is meant to fill must be full: a worker remembers the
last 100,000 ids, nats-server those of ten minutes. Redis holds the audit, which grows with each message.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mas_nats import Agent, AgentMessage, Reject
from tests.load import UNSURE
from tests.processes import children
from tests.system import System

RESULT = Path("build/soak.json")
MOST_SLOPE = 20.0
"""KB a second that a process of ours may grow in the last third; one object leaked a message is a hundred."""
_SERVERS = ("nats-server", "redis-server")
_ROW = "{:<14} {:>9} {:>9} {:>9} {:>12}"


@dataclass(frozen=True, slots=True)
class Growth:
    """The memory of one process, in MB; ``slope`` in KB a second."""

    process: str
    first: float
    last: float
    most: float
    slope: float


class Desk(Agent[dict[str, Any]]):
    """Answers requests, keeps a count in its state, fails now and then, and rejects some."""

    async def on_message(self, message: AgentMessage) -> None:
        number = int(message.data["n"])
        if number % 1000 == 999:
            raise Reject("one in a thousand")
        if number % 200 == 199 and message.attempt == 1:
            raise ValueError("one in two hundred, once")
        if message.expects_reply:
            await message.reply("answer", {"n": number})


async def soak(seconds: float, *, most: float = MOST_SLOPE) -> dict[str, Any]:
    """Run for ``seconds``; what was done and how each process grew."""
    with tempfile.TemporaryDirectory(prefix="mas-soak-") as folder:
        system = System.up(Path(folder) / ".mas")
        try:
            done, samples = await _run(system, seconds)
        finally:
            system.down()
    grown = [_growth(name, values) for name, values in samples.items()]
    return {
        "seconds": seconds,
        "messages": done,
        "processes": [asdict(each) for each in grown],
        "bounded": all(each.slope < most for each in grown if each.process not in _SERVERS),
    }


async def _run(system: System, seconds: float) -> tuple[int, dict[str, list[tuple[float, float]]]]:
    namespace = await system.namespace(["caller", "desk"], {"caller": ["desk"]})

    def options(agent: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}

    caller: Agent[dict[str, Any]] = Agent("caller", receive=False, **options("caller"))
    samples: dict[str, list[tuple[float, float]]] = {}
    numbers = itertools.count()
    done = 0
    end = time.monotonic() + seconds

    async def work(*, asks: bool) -> None:
        nonlocal done
        while time.monotonic() < end:
            number = next(numbers)
            try:
                if asks and number % 1000 != 999:
                    await caller.request("desk", "ask", {"n": number, "text": "x" * 500}, timeout=30)
                else:
                    await caller.send("desk", "note", {"n": number, "text": "x" * 500})
            except (*UNSURE, TimeoutError):
                continue
            done += 1

    async with caller, Desk("desk", **options("desk")):
        working = [asyncio.create_task(work(asks=place % 4 == 0)) for place in range(64)]
        while time.monotonic() < end:
            await asyncio.sleep(min(1.0, seconds / 60))
            for name, pid in {**children(system.broker.pid), "load": os.getpid()}.items():
                samples.setdefault(name, []).append((time.monotonic(), _resident(pid)))
        await asyncio.gather(*working)
    return done, samples


def _resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _growth(name: str, values: Sequence[tuple[float, float]]) -> Growth:
    memory = [held for _, held in values]
    last = values[len(values) * 2 // 3 :]
    slope = statistics.linear_regression(*zip(*last, strict=True)).slope if len(last) > 1 else 0.0
    return Growth(name, memory[0], memory[-1], max(memory), slope * 1000)


def _show(result: dict[str, Any]) -> None:
    print(f"{result['messages']} messages in {result['seconds']:g} s")
    print(_ROW.format("process", "first MB", "last MB", "most MB", "KB/s at end"))
    for each in result["processes"]:
        numbers = (f"{each[name]:.1f}" for name in ("first", "last", "most", "slope"))
        print(_ROW.format(each["process"], *numbers))


def main() -> int:
    """Soak from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    logging.getLogger("mas_nats").setLevel(logging.CRITICAL)  # the failures are wanted
    result = asyncio.run(soak(parser.parse_args().seconds))
    _show(result)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2))
    return 0 if result["bounded"] else 1


if __name__ == "__main__":
    sys.exit(main())
