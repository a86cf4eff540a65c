"""What the benchmarks make of their measurements: ratios, what has fallen, what differs, the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate, pairs, rounds
from benchmarks.aims import aims
from benchmarks.compare import main as compare
from benchmarks.report import plot, table
from benchmarks.workloads import workloads

RAW = {"per_second": 2000.0, "p50_ms": 1.0, "p99_ms": 3.0, "others": 0.02, "cpu_us.sender": 40.0}
GOVERNED = {
    **RAW,
    "per_second": 5000.0,
    "p50_ms": 2.0,
    "cpu_us.sender": 25.0,
    "cpu_us.policy": 60.0,
}
NAME = "one_way/1KiB/c256"


def measured(count: int = 3, **governed: float) -> list[Mapping[str, pairs.Measured]]:
    return [{"mediated": {**GOVERNED, **governed}, "raw": dict(RAW)} for _ in range(count)]


USUAL = gate.ratios(NAME, measured())
"""Throughput 2.5, sender 1.6, policy 0.67."""


@pytest.mark.parametrize(
    ("what", "figure", "factor"),
    [
        ("throughput", "per_second", 2 / 3),
        ("sender", "cpu_us.sender", 3 / 2),
        ("policy", "cpu_us.policy", 3 / 2),
    ],
)
def test_a_third_less_of_anything_has_fallen(what: str, figure: str, factor: float):
    slower = gate.ratios(NAME, measured(**{figure: GOVERNED[figure] * factor}))
    [low] = gate.fallen(slower, USUAL)
    assert low.name == f"{NAME}/{what}"
    assert "33% below" in str(low)


def test_a_fifth_less_has_not():
    slower = measured(
        per_second=GOVERNED["per_second"] * 0.8, **{"cpu_us.sender": 25 / 0.8, "cpu_us.policy": 60 / 0.8}
    )
    assert gate.fallen(gate.ratios(NAME, slower), USUAL) == []


def test_one_slow_round_of_three_is_not_believed():
    found = [*measured(2), *measured(1, per_second=100.0, **{"cpu_us.policy": 900.0})]
    assert gate.fallen(gate.ratios(NAME, found), USUAL) == []


def test_throughput_beside_other_work_is_not_judged_and_processor_time_is():
    busy = measured(per_second=100.0, others=0.5, **{"cpu_us.policy": 90.0})
    found = gate.ratios(NAME, [*measured(1), *busy])
    assert f"{NAME}/throughput" not in found
    assert [low.name for low in gate.fallen(found, USUAL)] == [f"{NAME}/policy"]


def test_what_is_expected_is_said_for_each_workload():
    known = {f"{each.name}/{what}" for each in gate.WORKLOADS for what in (*gate.PROCESSES, "throughput")}
    there = json.loads(gate.EXPECTED.read_text())["machine"]
    assert gate.expectations(there).keys() == known
    assert all(ratio > 0 for ratio in gate.expectations(there).values())


@pytest.mark.parametrize(("cores", "fsync"), [(2, 1), (1, 1), (1, 5), (1, 0.2)], ids=str)
def test_throughput_is_expected_of_machines_that_are_alike(cores: int, fsync: float):
    there = json.loads(gate.EXPECTED.read_text())["machine"]
    here = {"cores": there["cores"] * cores, "fsync_ms": there["fsync_ms"] * fsync}
    alike = (cores, fsync) == (1, 1)
    named = {name.rsplit("/", 1)[1] for name in gate.expectations(here)}
    assert named == {"sender", "policy"} | ({"throughput"} if alike else set())


# -- a whole result -----------------------------------------------------------------------------------


def row(*ratios: float, by: str = rounds.RATE) -> dict[str, Any]:
    sides = {"mediated": {**GOVERNED, "spread": 0.1}, "raw": {**RAW, "spread": 0.1}}
    middle = sorted(ratios)[len(ratios) // 2]
    return {**sides, "of": by, "ratio": middle, "ratios": sorted(ratios), "spread": rounds.spread(ratios)}


def result(**changed: tuple[float, ...]) -> dict[str, Any]:
    """As ``make bench`` writes it."""
    grown = row(0.93, 0.95, 0.97)
    grown |= {"less": grown.pop("raw"), "more": grown.pop("mediated")}
    return {
        "when": "2026-01-01T00:00:00+00:00",
        "rounds": 3,
        "workers": 2,
        "machine": {"cores": 2, "python": "3.11", "fsync_ms": 0.1, "load": 0.0},
        "results": {
            f"durable/{NAME}": row(*changed.get("busiest", (3.0, 3.1, 3.3))),
            "durable/send/1KiB/rate50": row(0.5, 0.5, 0.5, by=rounds.LATENCY),
            "durable/request/1KiB/rate50": row(0.5, 0.5, 0.5, by=rounds.LATENCY),
        },
        "growth": {
            "durable/growth_agents/1KiB/c256": {
                "what": "agents: 10 to 10,000",
                **grown,
                "peak_mb": {
                    "less": {"policy": 88.0, "nats-server": 40.0, "redis": 14.0},
                    "more": {"policy": 95.0, "nats-server": 640.0, "redis": 15.0},
                },
            }
        },
        "alone": {"dlp: nothing found": {"us": 16.0, "least": 15.9, "most": 16.4}},
        "peak_mb": {"durable": {"policy": 88.0, "redis": 14.0}},
        "seconds": 1,
    }


def test_the_table_has_everything():
    shown = table(result())
    for expected in (
        f"| `durable/{NAME}` | 2,000 | 5,000 | 3.10 (3.00, 3.30) |",
        "| agents: 10 to 10,000 | 2,000, 5,000 | 0.95 (0.93, 0.97) | 88, 95 | 40, 640 | 14, 15 |",
        "| dlp: nothing found | 16.0 (15.9, 16.4) |",
        "| durable | 88 | 14 |",
        "up to 2% of the processors",
    ):
        assert expected in shown


def test_aims_are_said_to_be_met_or_not():
    found = {aim.what: aim.met for aim in aims(result(busiest=(2.8, 2.9, 3.2)))}
    assert found[f"durable/{NAME}: ratio, at least 3"] is False
    assert found["processor µs of policy, c256, at most 60"] is True
    assert found["agents: 10 to 10,000: ratio, at least 0.9"] is True
    assert found["worker's memory with 10,000 agents, MB, at most 120"] is True
    assert found["request p50, ms: three raw durable publishes and 1 ms, at most 4"] is True


def test_plots_are_drawn_where_matplotlib_is(tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert [path.name for path in plot(result(), tmp_path)] == ["one_way_durable.png"]
    assert (tmp_path / "one_way_durable.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("second", "code"), [((2.9, 2.95, 3.0), 0), ((2.5, 2.7, 2.9), 1)])
def test_a_second_run_within_the_spread_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: tuple[float, ...], code: int
):
    paths = tmp_path / "first.json", tmp_path / "second.json"
    for path, content in zip(paths, (result(), result(busiest=second)), strict=True):
        path.write_text(json.dumps(content))
    assert compare(*paths) == code
    assert f"4 rows, {code} differ" in capsys.readouterr().out


def test_a_row_that_is_missing_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lacking = result()
    del lacking["growth"]["durable/growth_agents/1KiB/c256"]
    paths = tmp_path / "first.json", tmp_path / "second.json"
    for path, content in zip(paths, (result(), lacking), strict=True):
        path.write_text(json.dumps(content))
    assert compare(*paths) == 1
    assert "4 rows, 1 differ" in capsys.readouterr().out


def test_one_round_says_no_spread(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({**result(), "rounds": 1}))
    with pytest.raises(ValueError, match="at least 3"):
        compare(path, path)


def test_of_latencies_the_smaller_is_the_better():
    assert rounds.ratio(GOVERNED, RAW) == 2.5
    assert rounds.ratio(GOVERNED, RAW, by=rounds.LATENCY) == 0.5


@pytest.mark.parametrize("quick", [True, False])
def test_names_are_workload_size_concurrency(quick: bool):
    names = [each.name for each in workloads(quick=quick)]
    assert len(set(names)) == len(names)
    assert all(len(name.split("/")) == 3 for name in names)
    wanted = {"one_way/1KiB/c1", "one_way/1KiB/c64", NAME, "send/1KiB/rate50", "request/1KiB/rate50"}
    assert wanted | {"state_direct/1KiB/c1", "state_mediated/1KiB/c1"} <= set(names)
