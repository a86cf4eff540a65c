"""Whether one run gives what another gave: ``python -m benchmarks.compare first.json second.json``.

A row's spread is how far its rounds lay apart in the first run, least to most. The second run's ratio must
lie within one spread of the first's. Ends with 1 when a row does not, or is in the first run only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENOUGH = 3
"""Rounds without which nobody knows a spread."""


@dataclass(frozen=True)
class Row:
    """``second`` is None where the other run has no such row."""

    name: str
    first: float
    spread: float
    second: float | None

    @property
    def same(self) -> bool:
        """Whether the second run gives the first one's ratio, as exactly as that one says."""
        return self.second is not None and abs(self.second - self.first) <= self.spread


def rows(first: dict[str, Any], second: dict[str, Any]) -> Iterator[Row]:
    """Every row of the first run.

    Raises:
        ValueError: it has too few rounds to say a spread.

    """
    if first["rounds"] < ENOUGH:
        raise ValueError(f"the first run has {first['rounds']} rounds: take one with at least {ENOUGH}")
    for part in ("results", "growth"):
        for name, row in first[part].items():
            other = second[part].get(name)
            ratios = row["ratios"]
            apart = round(ratios[-1] - ratios[0], 3)
            yield Row(name, row["ratio"], apart, other["ratio"] if other else None)


def main(first: Path, second: Path) -> int:
    """Print every row; the exit code."""
    runs = [json.loads(path.read_text()) for path in (first, second)]
    found = list(rows(*runs))
    print("| | first ± spread | second | |\n|---|---|---|---|")
    for row in found:
        other = "none" if row.second is None else f"{row.second:.2f}"
        said = "" if row.same else "differs"
        print(f"| `{row.name}` | {row.first:.2f} ± {row.spread:.2f} | {other} | {said} |")
    different = sum(not row.same for row in found)
    print(f"\n{len(found)} rows, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    given = parser.parse_args()
    sys.exit(main(given.first, given.second))
