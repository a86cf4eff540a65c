"""Break everything in turn under load, and show that nothing was lost (``make chaos``).

Real servers, workers and agents in a folder of their own. ``--seconds`` is for load and nemeses; bringing
up and coming to rest takes a minute more. Exits with 1 when anything was lost, unaudited or unsettled, when
the chain is broken or when a fault of another kind was found; the evidence stays then.

    python -m tests.chaos --seconds 60 --seed 7 --only "nats killed"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.ports import free_port
from tests.chaos import nemeses, report
from tests.chaos.run import Outcome, Run
from tests.route_proxies import RouteProxies
from tests.system import System

BUILD = Path("build")


def main() -> int:
    """Run; returns the exit status."""
    arguments = _arguments()
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=BUILD)).absolute()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s, evidence in {folder}", flush=True)
    plan = {
        where: [one for one in table if not arguments.only or one.name in arguments.only]
        for where, table in TABLES.items()
        if where in (arguments.on or TABLES)
    }
    faults = sum(len(table) for table in plan.values())
    if not faults:
        print("no such nemesis there", file=sys.stderr)
        return 2
    outcomes = {
        where: SYSTEMS[where](folder / where, table, arguments, len(table) / faults)
        for where, table in plan.items()
        if table
    }
    done = report.document(outcomes, arguments.seed, arguments.seconds)
    (BUILD / "chaos.json").write_text(json.dumps(done, indent=2) + "\n")
    print(f"\n{report.table(done)}\n")
    for line in report.faults(outcomes):
        print(f"FAULT {line}")
    if done["ok"]:
        print(
            f"{done['accepted']:,} accepted, {done['updates']:,} updates of states: "
            "none lost, none unaudited, none unsettled; the chain verifies"
        )
        if not arguments.keep:
            shutil.rmtree(folder)
        return 0
    print(f"the evidence is in {folder}")
    return 1


def single(
    folder: Path, table: Sequence[nemeses.Nemesis], arguments: argparse.Namespace, share: float
) -> Outcome:
    """The run on one node, in ``share`` of the time."""
    folder.mkdir()
    system = System.up(folder / ".mas", "--port", str(free_port()))  # nobody else's when it is started again
    try:
        return _perform(system, table, arguments, share, None)
    finally:
        system.down()


def cluster(
    folder: Path, table: Sequence[nemeses.Nemesis], arguments: argparse.Namespace, share: float
) -> Outcome:
    """The run on three nodes, with proxies between them."""
    proxies = RouteProxies(Layout(folder / ".mas"))
    try:
        system = System.up(folder / ".mas", "--nodes", "3", "--port", str(free_port()))
        try:
            return _perform(system, table, arguments, share, proxies)
        finally:
            proxies.heal()
            system.down()
    finally:
        proxies.stop()


def _perform(
    system: System,
    table: Sequence[nemeses.Nemesis],
    arguments: argparse.Namespace,
    share: float,
    proxies: RouteProxies | None,
) -> Outcome:
    folder, seconds = system.layout.root.parent, arguments.seconds * share
    say(f"{'three nodes' if proxies else 'one node'}: {len(table)} nemeses in {seconds:.0f} s")
    run = Run(system, table, seconds, arguments.seed, folder, say, rate=arguments.rate, proxies=proxies)
    return asyncio.run(run.perform())


TABLES = {"single": nemeses.SINGLE, "cluster": nemeses.CLUSTER}
SYSTEMS = {"single": single, "cluster": cluster}


def say(line: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of load and nemeses together")
    parser.add_argument("--seed", type=int, default=1, help="decides order and moments of the faults")
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second")
    names = sorted({one.name for table in TABLES.values() for one in table})
    parser.add_argument("--on", action="append", choices=list(TABLES), help="this system; else both in turn")
    parser.add_argument("--only", action="append", choices=names, help="this nemesis; may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep the evidence, whatever it shows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
