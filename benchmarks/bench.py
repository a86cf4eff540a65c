"""The governed, audited, durable path beside raw nats-py, on the same server in the same run: ``make bench``.

Sides alternate, several rounds, medians; senders, receivers and policy workers are processes of their own.
Results go to ``benchmarks/results/latest.json``, with a table and plots beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.pairs import Measured, pair, peaks
from benchmarks.report import plot, table
from benchmarks.site import brought_up, machine, prepare, set_policy
from broker_policy.embedded.layout import Broker, Layout
from mas_nats.policy.governance import Governance

RESULTS = Path(__file__).parent / "results"
SIZES = {"100B": 100, "1KiB": 1024, "16KiB": 16 * 1024}
ONE_WAY = {1: 400, 16: 2_000, 64: 4_000, 256: 8_000}
"""Calls at each concurrency."""
RATE = 50
"""Calls a second where latency is measured: what leaves the machine idle most of the time."""
AT_RATE = 300


@dataclass(frozen=True)
class Workload:
    """What is measured: the same of two sides. Each side is a receiver and a sender, by role."""

    name: str  # workload/size/concurrency
    mediated: tuple[str, str]
    raw: tuple[str, str]
    count: int
    concurrency: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    async def measured(self, folder: Path, side: str) -> Measured:
        """One round of one side."""
        receiver, sender = self.mediated if side == "mediated" else self.raw
        return await pair(folder, receiver, sender, self.count, self.concurrency, **self.environment)


def workloads(*, quick: bool) -> Iterator[Workload]:
    """Everything that is measured in one profile."""
    sizes = {"1KiB": 1024} if quick else SIZES
    levels = {1: 200, 64: 1_500, 256: 3_000} if quick else ONE_WAY
    paced = {"BENCH_RATE": str(RATE)}
    calls = AT_RATE // 3 if quick else AT_RATE
    plain, governed = ("raw-receive", "raw-send"), ("receive", "send")
    for size, length in sizes.items():
        said = {"BENCH_BYTES": str(length)}
        for level, count in levels.items():
            less = count if length <= 1024 else count // 2
            yield Workload(f"one_way/{size}/c{level}", governed, plain, less, level, said)
        yield Workload(f"send/{size}/rate{RATE}", governed, plain, calls, 1, said | paced)
        asking, plainly = ("receive", "request"), ("raw-respond", "raw-request")
        yield Workload(f"request/{size}/rate{RATE}", asking, plainly, calls, 1, said | paced)
        if not quick:
            for kind in ("direct", "mediated"):
                sides = ("", f"state-{kind}"), ("", "raw-state")
                yield Workload(f"state_{kind}/{size}/c1", *sides, calls, 1, said)


async def main(*, quick: bool, profiles: Iterable[str], rounds: int, only: str) -> None:
    """Measure, write the results, print the table."""
    begun = time.monotonic()
    result: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "workers": 2,
        "results": {},
    }
    for profile in profiles:
        async with brought_up(relaxed=profile == "relaxed") as (folder, layout, broker):
            await prepare(layout, broker)
            result.setdefault("machine", machine(folder))
            chosen = [each for each in workloads(quick=quick) if only in each.name]
            for number, each in enumerate(chosen):
                print(f"{profile}/{each.name} ({number + 1} of {len(chosen)})", file=sys.stderr, flush=True)
                result["results"][f"{profile}/{each.name}"] = await compared(each, folder, rounds)
            if profile == "durable" and not quick and only in "growth":
                result["growth"] = await growth(folder, layout, broker, rounds)
            result.setdefault("peak_mb", {})[profile] = peaks(folder)
    result["seconds"] = round(time.monotonic() - begun)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(result, indent=2) + "\n")
    text = table(result)
    (RESULTS / "latest.md").write_text(text)
    print(text)
    for path in plot(result, RESULTS):
        print(f"drawn: {path}", file=sys.stderr)


async def compared(workload: Workload, folder: Path, rounds: int) -> dict[str, Any]:
    """Both sides in turn, another one first each time."""
    sides: dict[str, list[Measured]] = {"mediated": [], "raw": []}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            sides[side].append(await workload.measured(folder, side))
    found: dict[str, Any] = {side: medians(measured) for side, measured in sides.items()}
    pairs = zip(sides["mediated"], sides["raw"], strict=True)
    found["ratio"] = round(found["mediated"]["per_second"] / found["raw"]["per_second"], 3)
    found["ratios"] = sorted(round(ours["per_second"] / raw["per_second"], 3) for ours, raw in pairs)
    return found


def medians(measured: list[Measured]) -> Measured:
    """Of each figure; ``spread`` is between the fastest round and the slowest, as a part of the median."""
    names = set.intersection(*(set(each) for each in measured))
    found = {name: round(statistics.median(each[name] for each in measured), 3) for name in sorted(names)}
    rates = [each["per_second"] for each in measured]
    return {**found, "spread": round((max(rates) - min(rates)) / statistics.median(rates), 3)}


async def growth(folder: Path, layout: Layout, broker: Broker, rounds: int) -> dict[str, Any]:
    """Throughput with more of something, as a part of that without it, both in the same rounds."""
    rules = Governance.model_validate({"dlp": {"rules": [_rule(number) for number in range(487)]}})
    more: dict[str, dict[str, Any]] = {
        "agents 3 to 503": {"more_agents": 500},
        "DLP rules 13 to 500": {"governance": rules},
    }
    found = {}
    for name, policy in more.items():
        print(f"growth: {name}", file=sys.stderr, flush=True)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for grown in random.sample((False, True), 2):
                await set_policy(layout, broker, **(policy if grown else {}))
                done = await pair(folder, "receive", "send", ONE_WAY[64], 64)
                rates[grown].append(done["per_second"])
        found[name] = round(statistics.median(rates[True]) / statistics.median(rates[False]), 3)
    return found


def _rule(number: int) -> dict[str, Any]:
    pattern = rf"\bPROJECT-{number:04d}-[0-9]{{6}}\b"
    return {"id": f"project-{number}", "type": "project", "pattern": pattern, "action": "block"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main ratios, in about a minute")
    parser.add_argument("--profile", choices=("durable", "relaxed"), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, help="default: 5, quick 3")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    given = parser.parse_args()
    asyncio.run(
        main(
            quick=given.quick,
            profiles=given.profile or (["durable"] if given.quick else ["durable", "relaxed"]),
            rounds=given.rounds or (3 if given.quick else 5),
            only=given.only,
        )
    )
