"""One node against three, in one run: ``python -m benchmarks.three_nodes``.

Both brokers are up all the time and are measured in turn, so that what else the machine does hits both.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.system import System
from tests.traffic import callers

_SECONDS = 3.0
_ROUNDS = 3
_IN_FLIGHT = (1, 16, 64, 256)


async def _measure(system: System, namespace: str, in_flight: int) -> tuple[float, float]:
    """Messages a second, and the median latency in seconds."""
    enough = asyncio.Event()
    async with callers(system, namespace, "sender") as [caller]:
        sending = asyncio.create_task(caller.keep_sending(["receiver"], in_flight, enough))
        await asyncio.sleep(_SECONDS)
        enough.set()
        await sending
        lasted = caller.answered[-1] - caller.answered[0]
        return len(caller.answered) / max(lasted, 0.001), statistics.median(caller.latencies)


async def _run(systems: dict[int, System]) -> None:
    namespaces = {
        nodes: await system.namespace(["sender", "receiver"], {"sender": ["receiver"]})
        for nodes, system in systems.items()
    }
    found: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(_ROUNDS):
        for in_flight in _IN_FLIGHT:
            for nodes, system in systems.items():
                found[nodes, in_flight].append(await _measure(system, namespaces[nodes], in_flight))
    print("| in flight | one node/s | three nodes/s | ratio | one p50 | three p50 |")
    print("|---|---|---|---|---|---|")
    for in_flight in _IN_FLIGHT:
        one, three = (
            [statistics.median(values) for values in zip(*found[nodes, in_flight], strict=True)]
            for nodes in (1, 3)
        )
        row = f"| {in_flight} | {one[0]:,.0f} | {three[0]:,.0f} | {three[0] / one[0]:.2f} "
        print(f"{row}| {one[1] * 1000:.1f} ms | {three[1] * 1000:.1f} ms |")


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        systems = {
            nodes: System.up(Path(folder) / f"{nodes}" / ".mas", "--nodes", f"{nodes}") for nodes in (1, 3)
        }
        try:
            started = time.monotonic()
            asyncio.run(_run(systems))
            print(f"\n{time.monotonic() - started:.0f} s")
        finally:
            for system in systems.values():
                system.down()


if __name__ == "__main__":
    main()
