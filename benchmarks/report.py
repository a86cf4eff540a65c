"""A result as a table and as plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def table(result: dict[str, Any]) -> str:
    """Markdown: one line a workload."""
    machine, rounds = result["machine"], result["rounds"]
    where = f"{machine['cores']} cores, Python {machine['python']}, fsync {machine['fsync_ms']} ms"
    lines = [
        f"{result['when']}: {where}, load {machine['load']} before it; {rounds} rounds",
        "",
        "| | raw/s | governed/s | ratio (least, most) | raw p50, p99 ms | governed p50, p99 ms | policy µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["results"].items():
        raw, ours = row["raw"], row["mediated"]
        least, most = row["ratios"][0], row["ratios"][-1]
        lines.append(
            f"| `{name}` | {raw['per_second']:,.0f} | {ours['per_second']:,.0f} "
            f"| {row['ratio']:.2f} ({least:.2f}, {most:.2f}) | {_latencies(raw)} | {_latencies(ours)} "
            f"| {ours.get('cpu_us.policy', 0):.0f} |"
        )
    if growth := result.get("growth"):
        lines += ["", "| more of | throughput, as a part of that before |", "|---|---|"]
        lines += [f"| {name} | {ratio:.2f} |" for name, ratio in growth.items()]
    kinds = sorted({kind for peaks in result["peak_mb"].values() for kind in peaks})
    lines += ["", f"| most memory, MB | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for profile, peaks in result["peak_mb"].items():
        lines.append(f"| {profile} | {' | '.join(f'{peaks.get(kind, 0):.0f}' for kind in kinds)} |")
    return "\n".join(lines) + "\n"


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
