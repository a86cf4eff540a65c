"""A result as a table and as plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.aims import Aim, aims
from benchmarks.rounds import LATENCY

SERVICE = ("policy", "redis", "signer")


def table(result: dict[str, Any]) -> str:
    """Markdown: one line a workload; then growth, parts alone, processor time, memory, and the aims."""
    machine, rounds = result["machine"], result["rounds"]
    where = f"{machine['cores']} cores, Python {machine['python']}, fsync {machine['fsync_ms']} ms"
    blocks = [[f"{result['when']}: {where}, load {machine['load']} before it; {rounds} rounds"]]
    if rows := result["results"]:
        most = max(row[side]["others"] for row in rows.values() for side in ("raw", "mediated"))
        blocks[0].append(f"Other work had up to {most:.0%} of the processors (median of a row's rounds).")
        blocks += [_workloads(rows), _processor_time(rows)]
    if grown := result["growth"]:
        blocks.append(_growth(grown))
    if parts := result["alone"]:
        blocks.append(_alone(parts))
    if peaks := result["peak_mb"]:
        blocks.append(_memory(peaks))
    if met := list(aims(result)):
        blocks.append(_aims(met))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _workloads(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| | raw/s | governed/s | ratio (least, most) | raw p50, p99 ms | governed p50, p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        raw, ours = row["raw"], row["mediated"]
        of = " of p50" if row["of"] == LATENCY else ""
        lines.append(
            f"| `{name}` | {raw['per_second']:,.0f} | {ours['per_second']:,.0f} "
            f"| {_ratio(row)}{of} | {_latencies(raw)} | {_latencies(ours)} |"
        )
    return lines


def _processor_time(rows: dict[str, Any]) -> list[str]:
    """Microseconds a message are seconds for a million, or milliseconds for 1000."""
    sides = {
        f"{side} {kind}": (key, f"cpu_us.{kind}")
        for side, key in (("raw", "raw"), ("governed", "mediated"))
        for kind in ("sender", "receiver", "nats-server", *(SERVICE if key == "mediated" else ()))
    }
    lines = [f"| processor ms for 1000 | {' | '.join(sides)} |", "|---" * (1 + len(sides)) + "|"]
    for name, row in rows.items():
        used = " | ".join(f"{row[side].get(kind, 0):,.0f}" for side, kind in sides.values())
        lines.append(f"| `{name}` | {used} |")
    return lines


def _growth(grown: dict[str, Any]) -> list[str]:
    lines = [
        "| more of | messages/s before, after | ratio (least, most) | MB of a worker | nats-server | redis |",
        "|---|---|---|---|---|---|",
    ]
    for row in grown.values():
        less, more, peaks = row["less"], row["more"], row["peak_mb"]
        kinds = ("policy", "nats-server", "redis")
        memory = " | ".join(f"{peaks['less'][kind]:.0f}, {peaks['more'][kind]:.0f}" for kind in kinds)
        lines.append(
            f"| {row['what']} | {less['per_second']:,.0f}, {more['per_second']:,.0f} "
            f"| {_ratio(row)} | {memory} |"
        )
    return lines


def _alone(parts: dict[str, Any]) -> list[str]:
    lines = ["| alone, 1 KiB | µs a message (least, most) |", "|---|---|"]
    for name, took in parts.items():
        lines.append(f"| {name} | {took['us']:.1f} ({took['least']:.1f}, {took['most']:.1f}) |")
    return lines


def _memory(profiles: dict[str, Any]) -> list[str]:
    kinds = sorted({kind for peaks in profiles.values() for kind in peaks})
    lines = [f"| most memory, MB | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for profile, peaks in profiles.items():
        lines.append(f"| {profile} | {' | '.join(f'{peaks.get(kind, 0):.0f}' for kind in kinds)} |")
    return lines


def _aims(met: list[Aim]) -> list[str]:
    lines = ["| aim | measured | without policy | the least of it | met |", "|---|---|---|---|---|"]
    for aim in met:
        without, least = ("" if known is None else f"{known:.2f}" for known in (aim.bare, aim.least))
        lines.append(f"| {aim.what} | {aim.found:.2f} | {without} | {least} | {'yes' if aim.met else 'no'} |")
    return lines


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['ratios'][0]:.2f}, {row['ratios'][-1]:.2f})"


def _latencies(side: dict[str, float]) -> str:
    return f"{side['p50_ms']:.2f}, {side['p99_ms']:.1f}"


def plot(result: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Draw throughput and ratio over concurrency, for each profile; where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        return
    profiles = dict.fromkeys(name.split("/")[0] for name in result["results"])
    for profile in profiles:
        lines: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for name, row in result["results"].items():
            of, workload, size, level = name.split("/")
            if (of, workload) == (profile, "one_way"):
                lines.setdefault(size, []).append((int(level[1:]), row))
        if not lines:
            continue
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        rates, ratios = figure.subplots(1, 2)
        for number, (size, points) in enumerate(lines.items()):
            levels = [level for level, _ in points]
            for side, style in (("mediated", "-o"), ("raw", "--x")):
                values = [row[side]["per_second"] for _, row in points]
                rates.plot(levels, values, style, color=f"C{number}", label=f"{size}, {side}")
            low = [row["ratio"] - row["ratios"][0] for _, row in points]
            high = [row["ratios"][-1] - row["ratio"] for _, row in points]
            values = [row["ratio"] for _, row in points]
            errors = [[max(0.0, each) for each in side] for side in (low, high)]
            ratios.errorbar(levels, values, errors, fmt="-o", color=f"C{number}", label=size, capsize=3)
        ratios.axhline(1, color="grey", linewidth=0.8)
        for axes, title in ((rates, "messages a second"), (ratios, "governed to raw")):
            axes.set(xscale="log", xlabel="sends in flight", title=f"{profile}: {title}", ylim=(0, None))
            axes.set_xticks(levels, [str(level) for level in levels])
            axes.legend(fontsize=8)
        path = folder / f"one_way_{profile}.png"
        figure.savefig(path, dpi=110)
        yield path
