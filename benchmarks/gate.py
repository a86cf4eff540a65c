"""Has the governed path become slower? A short measurement, and ratios that may not fall by a quarter.

``python -m benchmarks.gate`` takes under a minute, prints each ratio beside what it should be
(``benchmarks/expected.json``), and ends with 1 when one has fallen; ``--write`` makes the file anew, with
more rounds, on a machine that does nothing else.

All ratios compare with raw nats-py in the same round, and more is better:

* ``throughput``: messages a second, of those of raw nats-py. Judged only on a machine like the one of which
  it is expected (``alike``), and in rounds in which other work left it alone (``QUIET``): more processors,
  another disk or other work change the speed of one side more than that of the other.
* ``sender``, ``policy``: the processor time that the raw sender takes for a message, by what this process (or
  all workers together) takes for a governed one. Other work changes these little: they are judged anywhere.

What has fallen is measured a second time, with more rounds, before it is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import Measured
from benchmarks.rounds import in_turn
from benchmarks.site import brought_up, machine, prepare
from benchmarks.workloads import Workload, asked, one_way, state

EXPECTED = Path(__file__).parent / "expected.json"
FALL = 0.25
"""A ratio fails that is lower than expected by more than this part."""
QUIET = 0.15
"""Of the processors, what others may have where throughput is judged."""
ALIKE = 4
"""Times by which a disk may be faster or slower for that."""
ENOUGH = 2
"""Quiet rounds without which throughput is not judged."""
ATTEMPTS = (3, 7)
"""Rounds of the first attempt, and of the second."""
CAREFULLY = 11
"""Rounds for what is expected from then on."""
_SIZE = {"BENCH_BYTES": "1024"}
WORKLOADS = (
    one_way("1KiB", 1, 200, _SIZE),
    one_way("1KiB", 256, 2_500, _SIZE),
    asked("1KiB", 64, 800, _SIZE),
    state("mediated", "1KiB", 150, _SIZE),
)
PROCESSES = ("sender", "policy")


@dataclass(frozen=True)
class Fallen:
    """A ratio that has fallen."""

    name: str  # of the workload and what is compared
    found: float
    expected: float

    def __str__(self) -> str:
        part = 1 - self.found / self.expected
        return f"{self.name}: {self.found:.3g}, {part:.0%} below the {self.expected:.3g} that it should be"


def ratios(name: str, found: Sequence[Mapping[str, Measured]]) -> dict[str, float]:
    """Medians over rounds of ``mediated`` and ``raw``, by name; throughput only where enough were quiet."""
    every = {process: [_unit(each) / _used(each, process) for each in found] for process in PROCESSES}
    quiet = [each for each in found if max(side["others"] for side in each.values()) <= QUIET]
    if len(quiet) >= ENOUGH:
        every["throughput"] = [each["mediated"]["per_second"] / each["raw"]["per_second"] for each in quiet]
    return {f"{name}/{what}": statistics.median(values) for what, values in every.items()}


def _unit(each: Mapping[str, Measured]) -> float:
    return each["raw"]["cpu_us.sender"]


def _used(each: Mapping[str, Measured], process: str) -> float:
    return max(each["mediated"][f"cpu_us.{process}"], 1.0)


def fallen(found: Mapping[str, float], expected: Mapping[str, float]) -> list[Fallen]:
    """What of ``found`` is lower than expected by more than ``FALL``."""
    return [
        Fallen(name, ratio, expected[name])
        for name, ratio in found.items()
        if name in expected and ratio < expected[name] * (1 - FALL)
    ]


async def measured(
    folder: Path, workloads: Iterable[Workload], rounds: int, **governed: str
) -> dict[str, float]:
    """The ratios of these workloads; ``governed`` is for the environment of the governed side's programs."""
    found: dict[str, float] = {}
    for workload in workloads:
        async with workload.pairs(folder, **governed) as pairs:
            found |= ratios(workload.name, await in_turn(pairs, rounds))
    return found


async def judged(
    folder: Path,
    expected: Mapping[str, float],
    workloads: Collection[Workload] = WORKLOADS,
    *,
    attempts: Sequence[int] = ATTEMPTS,
    **governed: str,
) -> tuple[dict[str, float], list[Fallen]]:
    """What was measured last of each, and what had fallen in every attempt."""
    found: dict[str, float] = {}
    low: list[Fallen] = []
    for rounds in attempts:
        found |= await measured(folder, workloads, rounds, **governed)
        low = fallen(found, expected)
        workloads = [each for each in workloads if any(it.name.startswith(f"{each.name}/") for it in low)]
        if not workloads:
            break
    return found, low


def expectations(here: Mapping[str, Any]) -> dict[str, float]:
    """What the ratios should be on this ``machine()``."""
    known = json.loads(EXPECTED.read_text())
    same = alike(known["machine"], here)
    return {
        name: ratio for name, ratio in known["ratios"].items() if same or not name.endswith("/throughput")
    }


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two machines have as many processors, and disks of which none is ``ALIKE`` times as fast."""
    syncs = sorted((one["fsync_ms"], other["fsync_ms"]))
    return bool(one["cores"] == other["cores"] and syncs[1] < ALIKE * syncs[0])


async def main(*, write: bool) -> int:
    """Measure and print; the exit code."""
    here = machine()
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        if write:
            found = await measured(folder, WORKLOADS, CAREFULLY)
            lacking = [each.name for each in WORKLOADS if f"{each.name}/throughput" not in found]
            if lacking:
                print(f"too busy to say the throughput of {', '.join(lacking)}: nothing was written")
                return 1
            known = {"cores": here["cores"], "fsync_ms": here["fsync_ms"]}
            rounded = {name: round(ratio, 3) for name, ratio in found.items()}
            text = json.dumps({"machine": known, "ratios": rounded}, indent=2)
            EXPECTED.write_text(text + "\n")
            print(text)
            return 0
        expected = expectations(here)
        found, low = await judged(folder, expected)
    print("| | measured | expected |\n|---|---|---|")
    for name, bound in expected.items():
        print(f"| `{name}` | {f'{found[name]:.3g}' if name in found else 'too busy to say'} | {bound:.3g} |")
    print(*low, sep="\n")
    return 1 if low else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="what is measured now is expected from now on")
    given = parser.parse_args()
    sys.exit(asyncio.run(main(write=given.write)))
