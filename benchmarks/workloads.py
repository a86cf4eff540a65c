"""What is measured in a profile: names, sizes, and the programs of both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import rounds
from benchmarks.pairs import Pair

SIZES = {"100B": 100, "1KiB": 1024, "16KiB": 16 * 1024}
ONE_WAY = {1: 400, 16: 2_000, 64: 4_000, 256: 8_000}
"""Calls at each concurrency."""
BARE_SIZE, BARE = "1KiB", (1, 64, 256)
"""At which size and concurrency the way without policy is measured, too, and the least of a policy."""
PACE = 50
"""Calls a second where latency is measured: what leaves the machine idle most of the time."""
AT_PACE = 300
STATE = 300


@dataclass(frozen=True)
class Workload:
    """What is measured: the same of two sides. Each side is a receiver and a sender, by role."""

    name: str  # workload/size/concurrency
    mediated: tuple[str, str]
    raw: tuple[str, str]
    count: int
    concurrency: int = 1
    by: str = rounds.RATE
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""  # the role of a third program of the first side

    async def compared(self, folder: Path, times: int) -> dict[str, Any]:
        """Both sides in turn: their medians and ratios."""
        async with self.pairs(folder) as pairs:
            return await rounds.compared(pairs, times, by=self.by)

    @asynccontextmanager
    async def pairs(self, folder: Path, **governed: str) -> AsyncIterator[dict[str, Pair]]:
        """The programs of both sides; ``governed`` goes into the environment of the governed one's only."""
        async with AsyncExitStack() as stack:
            yield {
                side: await stack.enter_async_context(
                    Pair(
                        folder,
                        *roles,
                        self.count,
                        self.concurrency,
                        environment={**self.environment, **more},
                        beside=beside,
                    )
                )
                for side, roles, more, beside in (
                    ("mediated", self.mediated, governed, self.beside),
                    ("raw", self.raw, {}, ""),
                )
            }


def workloads(*, quick: bool) -> Iterator[Workload]:
    """Everything that is measured in one profile."""
    sizes = {"1KiB": 1024} if quick else SIZES
    levels = {1: 200, 64: 1_500, 256: 3_000} if quick else ONE_WAY
    calls, updates = (60, 100) if quick else (AT_PACE, STATE)
    for size, length in sizes.items():
        said = {"BENCH_BYTES": str(length)}
        kinds = ("bare", "floor") if size == BARE_SIZE and not quick else ()
        for level, count in levels.items():
            less = count if length <= 1024 else count // 2
            yield one_way(size, level, less, said)
            for kind in kinds if level in BARE else ():
                yield beside(kind, "one_way", size, f"c{level}", count, level, said)
        paced = said | {"BENCH_RATE": str(PACE)}
        for name, governed, plain in (
            ("send", ("receive", "send"), ("raw-receive", "raw-send")),
            ("request", ("receive", "request"), ("raw-respond", "raw-request")),
        ):
            key = f"{name}/{size}/rate{PACE}"
            yield Workload(key, governed, plain, calls, by=rounds.LATENCY, environment=paced)
            for kind in kinds:
                yield beside(kind, name, size, f"rate{PACE}", calls, 1, paced)
        for kind in ("direct", "mediated"):
            yield state(kind, size, updates, said)
        if kinds:
            yield beside("bare", "state_mediated", size, "c1", updates, 1, said)


def one_way(size: str, level: int, count: int, environment: Mapping[str, str]) -> Workload:
    """Sends, ``level`` of them in flight."""
    sides = ("receive", "send"), ("raw-receive", "raw-send")
    return Workload(f"one_way/{size}/c{level}", *sides, count, level, environment=environment)


def asked(size: str, level: int, count: int, environment: Mapping[str, str]) -> Workload:
    """Requests, ``level`` of them in flight."""
    sides = ("receive", "request"), ("raw-respond", "raw-request")
    return Workload(f"request/{size}/c{level}", *sides, count, level, environment=environment)


def beside(
    kind: str, what: str, size: str, how: str, count: int, concurrency: int, environment: Mapping[str, str]
) -> Workload:
    """The same ``bare``, without policy, or at its ``floor``, with the least that a policy service does."""
    receiver, sender, raw, by = {
        "one_way": ("receive", "send", ("raw-receive", "raw-send"), rounds.RATE),
        "send": ("receive", "send", ("raw-receive", "raw-send"), rounds.LATENCY),
        "request": ("receive", "request", ("raw-respond", "raw-request"), rounds.LATENCY),
        "state_mediated": ("", "state", ("", "raw-state"), rounds.RATE),
    }[what]
    receiver = "respond" if (kind, what) == ("bare", "request") else receiver
    ours = f"{kind}-{receiver}" if receiver else "", f"{kind}-{sender}"
    name = f"{kind}_{what}/{size}/{how}"
    return Workload(name, ours, raw, count, concurrency, by, environment, beside=f"{kind}-work")


def state(kind: str, size: str, count: int, environment: Mapping[str, str]) -> Workload:
    """Updates of one agent's state, ``direct`` or ``mediated``, one at a time."""
    sides = ("", f"state-{kind}"), ("", "raw-state")
    return Workload(f"state_{kind}/{size}/c1", *sides, count, environment=environment)
