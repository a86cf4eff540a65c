"""The governed, audited, durable path beside raw nats-py, on the same server in the same run: ``make bench``.

Sides alternate, several rounds, medians and spread; senders, receivers and policy workers are processes of
their own. Results go to ``benchmarks/results/latest.json``, with a table and plots beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import alone
from benchmarks.growth import ENTRIES, growths
from benchmarks.pairs import peaks
from benchmarks.report import plot, table
from benchmarks.site import brought_up, machine, prepare
from benchmarks.workloads import workloads

RESULTS = Path(__file__).parent / "results"
WORKERS = 2


async def main(
    *, quick: bool, profiles: Collection[str], rounds: int, only: str, entries: int = ENTRIES
) -> dict[str, Any]:
    """Measure what has ``only`` in its name."""
    begun = time.monotonic()
    result: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "workers": WORKERS,
        "machine": machine(),
        "results": {},
        "growth": {},
        "alone": {},
        "peak_mb": {},
    }
    chosen = [each for each in workloads(quick=quick) if only in each.name]
    for profile in profiles:
        if not chosen:
            break
        async with brought_up(WORKERS, relaxed=profile == "relaxed") as (folder, layout, broker):
            await prepare(layout, broker)
            for number, each in enumerate(chosen):
                _say(f"{profile}/{each.name}", number, len(chosen), begun)
                result["results"][f"{profile}/{each.name}"] = await each.compared(folder, rounds)
            result["peak_mb"][profile] = peaks(folder)
    if not quick and "durable" in profiles:
        more = [each for each in growths(entries=entries) if only in each.name]
        for number, growth in enumerate(more):
            _say(f"durable/{growth.name}", number, len(more), begun)
            result["growth"][f"durable/{growth.name}"] = await growth.compared(rounds)
    if not quick and only in "alone":
        _say("alone", 0, 1, begun)
        result["alone"] = alone.measured()
    result["seconds"] = round(time.monotonic() - begun)
    return result


def _say(what: str, number: int, of: int, begun: float) -> None:
    print(f"{time.monotonic() - begun:4.0f} s: {what} ({number + 1} of {of})", file=sys.stderr, flush=True)


def kept(result: dict[str, Any], folder: Path) -> None:
    """Write a result and what shows it; print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(result, indent=2) + "\n")
    text = table(result)
    (folder / "latest.md").write_text(text)
    print(text)
    for path in plot(result, folder):
        print(f"drawn: {path}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main ratios, in under a minute")
    parser.add_argument("--profile", choices=("durable", "relaxed"), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, help="default: 5, quick 3")
    parser.add_argument(
        "--only", default="", help="what has this in its name, as growth, alone or state_direct"
    )
    parser.add_argument("--entries", type=int, default=ENTRIES, help="of the grown audit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    given = parser.parse_args()
    done = asyncio.run(
        main(
            quick=given.quick,
            profiles=given.profile or (["durable"] if given.quick else ["durable", "relaxed"]),
            rounds=given.rounds or (3 if given.quick else 5),
            only=given.only,
            entries=given.entries,
        )
    )
    kept(done, given.results)
