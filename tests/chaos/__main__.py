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

from tests.chaos import nemeses, report
from tests.chaos.run import Outcome, Run
from tests.system import System

BUILD = Path("build")


def main() -> int:
    """Run; returns the exit status."""
    arguments = _arguments()
    BUILD.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=BUILD)).absolute()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s, evidence in {folder}", flush=True)
    chosen = [one for one in nemeses.SINGLE if not arguments.only or one.name in arguments.only]
    outcomes = {"single": single(folder / "single", chosen, arguments)}
    done = report.document(outcomes, arguments.seed, arguments.seconds)
    (BUILD / "chaos.json").write_text(json.dumps(done, indent=2) + "\n")
    print(f"\n{report.table(done)}\n")
    for line in report.faults(outcomes):
        print(f"FAULT {line}")
    if done["ok"]:
        print(f"{done['accepted']:,} accepted: none lost, none unaudited, none unsettled; the chain verifies")
        if not arguments.keep:
            shutil.rmtree(folder)
        return 0
    print(f"the evidence is in {folder}")
    return 1


def single(folder: Path, chosen: Sequence[nemeses.Nemesis], arguments: argparse.Namespace) -> Outcome:
    """The run on one node."""
    folder.mkdir()
    system = System.up(folder / ".mas")
    try:
        run = Run(system, chosen, arguments.seconds, arguments.seed, folder, say, rate=arguments.rate)
        return asyncio.run(run.perform())
    finally:
        system.down()


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
    names = [one.name for one in nemeses.SINGLE]
    parser.add_argument("--only", action="append", choices=names, help="this nemesis; may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep the evidence, whatever it shows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
