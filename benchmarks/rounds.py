"""Two sides measured in turn, and what the one is of the other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.pairs import Measured, Pair

LATENCY, RATE = "p50_ms", "per_second"
"""Figures that are compared."""


async def in_turn(pairs: Mapping[str, Pair], rounds: int) -> list[dict[str, Measured]]:
    """Both sides in each round, the other one first each time."""
    found = []
    for number in range(rounds):
        order = list(pairs) if number % 2 else list(pairs)[::-1]
        found.append({side: await pairs[side].round() for side in order})
    return found


async def compared(pairs: Mapping[str, Pair], rounds: int, *, by: str = RATE) -> dict[str, Any]:
    """The medians of both sides, and the ``ratios`` of all rounds: how much the first has of the second."""
    found = await in_turn(pairs, rounds)
    ours, other = pairs
    ratios = sorted(round(ratio(each[ours], each[other], by=by), 3) for each in found)
    return {
        **{side: medians([each[side] for each in found]) for side in pairs},
        "of": by,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": ratios,
        "spread": spread(ratios),
    }


def ratio(ours: Measured, other: Measured, *, by: str = RATE) -> float:
    """How much speed one side has of the other's. More is better: of latencies it is the inverse."""
    return ours[by] / other[by] if by == RATE else other[by] / ours[by]


def spread(values: Iterable[float]) -> float:
    """How far the rounds lie apart, least to most, as a part of their median."""
    known = list(values)
    middle = statistics.median(known)
    return round((max(known) - min(known)) / middle, 3) if middle else 0.0


def medians(measured: list[Measured]) -> Measured:
    """Of each figure over all rounds, and the ``spread`` of the calls a second."""
    names = set.intersection(*(set(each) for each in measured))
    found = {name: round(statistics.median(each[name] for each in measured), 3) for name in sorted(names)}
    return {**found, "spread": spread(each[RATE] for each in measured)}
