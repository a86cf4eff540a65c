"""The governed path does not become slower unseen: ``benchmarks.gate``, and that it notices."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gate
from benchmarks.site import machine, prepare
from tests.system import System

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a broker that nobody else uses: what other namespaces cost must not count."""
    system = System.up(tmp_path_factory.mktemp("speed") / ".mas")
    asyncio.run(prepare(system.layout, system.broker))
    yield system.layout.root.parent
    system.down()


async def test_no_ratio_has_fallen_by_a_quarter(folder: Path):
    found, low = await gate.judged(folder, gate.expectations(machine()))
    assert not low, [*map(str, low), found]


async def test_it_fails_where_a_message_takes_its_sender_twice_as_long(folder: Path):
    busiest = next(each for each in gate.WORKLOADS if each.name == "one_way/1KiB/c256")
    async with busiest.pairs(folder) as pairs:
        rounds = await gate.in_turn(pairs, 3)
    usual = gate.ratios(busiest.name, rounds)
    assert not gate.fallen(usual, usual)
    once_more = statistics.median(each["mediated"]["cpu_us.sender"] for each in rounds)
    _, low = await gate.judged(folder, usual, [busiest], attempts=(1, 3), BENCH_WASTE=f"{once_more}")
    assert f"{busiest.name}/sender" in {each.name for each in low}
