"""What the numbers should be, in the durable profile at 1 KiB on two cores, and what a result says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_AT_LEAST, _AT_MOST = "at least", "at most"
_RAW_SEND, _REQUEST = "durable/send/1KiB/rate50", "durable/request/1KiB/rate50"
_BUSY = "durable/one_way/1KiB/c256"


@dataclass(frozen=True)
class Aim:
    """``what`` names it with its bound.

    ``bare``: what the same gives without any policy, ``least``: with the least of it, where that is known.
    """

    what: str
    found: float
    met: bool
    bare: float | None = None
    least: float | None = None


def aims(result: dict[str, Any]) -> Iterator[Aim]:
    """Every aim about which ``result`` says something."""
    rows, grown = result["results"], result["growth"]
    for name, bound in (
        (_BUSY, 3.0),
        ("durable/one_way/1KiB/c64", 2.0),
        ("durable/one_way/1KiB/c1", 0.5),
        ("relaxed/one_way/1KiB/c256", 0.7),
        ("durable/state_direct/1KiB/c1", 0.8),
        ("durable/state_mediated/1KiB/c1", 0.4),
    ):
        if name in rows:
            without, least = (rows.get(beside(name, kind), {}).get("ratio") for kind in ("bare", "floor"))
            yield _aim(f"{name}: ratio", rows[name]["ratio"], _AT_LEAST, bound, without, least)
    if _RAW_SEND in rows and _REQUEST in rows:
        ours, raw = rows[_REQUEST]["mediated"], rows[_RAW_SEND]["raw"]
        most = 3 * raw["p50_ms"] + 1
        without, least = (
            rows.get(beside(_REQUEST, kind), {}).get("mediated", {}).get("p50_ms")
            for kind in ("bare", "floor")
        )
        what = "request p50, ms: three raw durable publishes and 1 ms"
        yield _aim(what, ours["p50_ms"], _AT_MOST, most, without, least)
        yield _aim("request p99 by p50", ours["p99_ms"] / ours["p50_ms"], _AT_MOST, 4)
    if _BUSY in rows:
        took, without, least = (
            row.get("mediated", {}).get("cpu_us.policy")
            for row in (rows[_BUSY], *(rows.get(beside(_BUSY, kind), {}) for kind in ("bare", "floor")))
        )
        yield _aim("processor µs of policy, c256", took, _AT_MOST, 60, without, least)
    for name, row in grown.items():
        if "growth_workers" not in name:
            yield _aim(f"{row['what']}: ratio", row["ratio"], _AT_LEAST, 0.9)
        if "growth_agents" in name:
            yield _aim(
                "worker's memory with 10,000 agents, MB", row["peak_mb"]["more"]["policy"], _AT_MOST, 120
            )


def beside(name: str, kind: str) -> str:
    """The row of the same without any policy (``bare``), or with the least of it (``floor``)."""
    profile, _, rest = name.partition("/")
    return f"{profile}/{kind}_{rest}"


def _aim(
    what: str,
    found: float,
    side: str,
    bound: float,
    without: float | None = None,
    least: float | None = None,
) -> Aim:
    met = found >= bound if side == _AT_LEAST else found <= bound
    return Aim(f"{what}, {side} {bound:.4g}", found, met, without, least)
