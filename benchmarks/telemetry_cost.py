"""What telemetry costs: processor time for a message, in the worker and in the agents, off and on.

``python -m benchmarks.telemetry_cost --before TREE`` takes some minutes and prints ratios. ``TREE`` is a
checkout from before telemetry (``git worktree add``); without it only off and on are compared. Each side has
a broker with one worker of its own; sides alternate, another one first in each round. Processor time is
counted and not the clock, since other work on the machine changes it much less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
PREFIX = "MAS_GATEWAY__TELEMETRY__"
AT_ONCE = 64


@dataclass(frozen=True)
class Side:
    """One way to run it: the code, and what the environment says."""

    name: str
    tree: Path
    said: Mapping[str, str]


class Swallow(BaseHTTPRequestHandler):
    """A collector that takes everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    """Compare the sides, or be the agents of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout from before telemetry")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--agents", nargs=2, metavar=("URL", "CERTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.agents:
        url, certs = arguments.agents
        print(json.dumps(asyncio.run(talk(url, certs, arguments.messages))))
        return
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Swallow)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    on = {f"{PREFIX}ENABLED": "true", f"{PREFIX}OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    sides = [
        Side("off", HERE, {}),
        Side("on, nothing sampled", HERE, {**on, f"{PREFIX}SAMPLE_RATIO": "0"}),
        Side("on, all sampled", HERE, on),
    ]
    if arguments.before:
        sides.insert(0, Side("before", arguments.before.resolve(), {}))
    compare(sides, arguments.rounds, arguments.messages)


def compare(sides: list[Side], rounds: int, messages: int) -> None:
    """Run all sides ``rounds`` times and print medians."""
    measured: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            measured[side.name].append(run(side, messages))
            print(f"round {number + 1}: {side.name}: {_shown(*measured[side.name][-1])}", file=sys.stderr)
    base = measured[sides[0].name]
    print(f"microseconds of processor time a message; ratios to {sides[0].name!r} of the same round")
    for name, found in measured.items():
        worker, agents = (statistics.median(each) for each in zip(*found, strict=True))
        by_worker, by_agents = (
            statistics.median(mine[place] / theirs[place] for mine, theirs in zip(found, base, strict=True))
            for place in (0, 1)
        )
        print(f"{name:22} {_shown(worker, agents)}  ratios {by_worker:.3f} {by_agents:.3f}")


def _shown(worker: float, agents: float) -> str:
    return f"worker {worker * 1e6:6.0f}  agents {agents * 1e6:6.0f}"


def run(side: Side, messages: int) -> tuple[float, float]:
    """Seconds of processor time for a message: of the worker, and of the agents."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAS_GATEWAY__")}
    environment |= {"PYTHONPATH": str(side.tree), **side.said}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / ".mas"
        mas = [sys.executable, "-m", "broker_policy.cli"]
        with up(mas, root, side.tree, environment) as url:
            pid = _worker(root)
            # In this tree's words, with that side's code: the measured package comes from PYTHONPATH.
            command = [sys.executable, "-P", str(Path(__file__)), "--agents", url, str(root)]
            warm = [*command, "--messages", "200"]
            subprocess.run(warm, env=environment, cwd=folder, check=True, capture_output=True)
            before = _used(pid)
            done = subprocess.run(
                [*command, "--messages", str(messages)],
                env=environment,
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            )
            return (_used(pid) - before) / messages, float(json.loads(done.stdout)) / messages


@contextmanager
def up(mas: list[str], root: Path, tree: Path, environment: dict[str, str]) -> Iterator[str]:
    """A broker of that side; its address."""
    manifest = root.parent / "mas.yaml"
    manifest.write_text(
        "agents: [{agent_id: a}, {agent_id: b}]\npermissions: [{type: allow, sender: a, targets: [b]}]\n"
    )

    def call(*words: str) -> None:
        command = [*mas, *words, "--folder", str(root)]
        subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True)

    call("up", "--detach", "--relaxed", "--workers", "1", "--manifest", str(manifest))
    try:
        for agent in ("a", "b"):
            call("certs", "agent", agent)
        yield json.loads((root / "endpoint.json").read_text())["url"]
    finally:
        call("down")


def _worker(root: Path) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"broker_policy.worker" in command and str(root).encode() in command:
            return int(path.name)
    raise RuntimeError("no worker runs")


def _used(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def talk(url: str, certs: str, messages: int) -> float:
    """Send, handle; the seconds of processor time that this process took for it."""
    from mas_nats import Agent, AgentMessage  # noqa: PLC0415 - the side's, not this tree's

    handled = asyncio.Event()
    left = messages

    class Receiver(Agent[dict[str, Any]]):
        async def on_message(self, message: AgentMessage) -> None:  # noqa: ARG002
            nonlocal left
            left -= 1
            if not left:
                handled.set()

    os.chdir(Path(certs).parent)
    async with Receiver("b", server_addr=url), Agent("a", server_addr=url, receive=False) as sender:
        begun = time.process_time()
        turns = asyncio.Semaphore(AT_ONCE)

        async def send(number: int) -> None:
            async with turns:
                await sender.send("b", "note", {"n": number, "text": "x" * 200})

        await asyncio.gather(*(send(number) for number in range(messages)))
        await handled.wait()
        return time.process_time() - begun


if __name__ == "__main__":
    main()
