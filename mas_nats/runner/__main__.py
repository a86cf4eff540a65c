"""``python -m mas_nats.runner``: ``mas run`` where only the SDK is installed. It issues no certificates."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from mas_nats import standard_streams
from mas_nats.errors import MasError

_INSTALL = "reading a manifest needs more than the SDK: pip install 'mas-nats[runner]'"


def main() -> int:
    """The whole program; its exit status."""
    standard_streams.open_closed()
    try:
        from mas_nats.runner.printing import JsonLines, Text  # noqa: PLC0415
        from mas_nats.runner.run import GRACE, Options, run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in {"yaml", "pydantic_settings"}:
            raise
        sys.stderr.write(f"error: {_INSTALL}\n")
        return 1
    parser = argparse.ArgumentParser(
        prog="python -m mas_nats.runner",
        description="Run every instance of every agent of a manifest as a process of its own.",
        epilog="Exit status: 0 stopped or finished, 1 not in order, failed or killed, 2 wrong usage.",
    )
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="only these")
    parser.add_argument(
        "--manifest", type=Path, help="a mas.yaml; else $MAS_RUNNER_CONFIG_FILE, else the nearest"
    )
    parser.add_argument("--server", metavar="ADDRESS", help="the broker, host:port or URL")
    parser.add_argument("--folder", type=Path, help="the folder of mas up; the nearest .mas when not given")
    parser.add_argument(
        "--grace", type=float, default=GRACE, help=f"seconds until SIGKILL at the end ({GRACE:g})"
    )
    parser.add_argument("--until", metavar="AGENT", help="stop all when this agent has ended")
    parser.add_argument("--check", action="store_true", help="start nothing, only look")
    parser.add_argument("--log-level", default="WARNING", help="of the agents' logging (WARNING)")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    try:
        return asyncio.run(
            run(Options(**given), lambda closed: JsonLines(closed=closed) if as_json else Text(closed=closed))
        )
    except (MasError, OSError) as error:
        text = str(error)
        if as_json:
            sys.stdout.write(json.dumps({"error": {"type": type(error).__name__, "text": text}}) + "\n")
        else:
            sys.stderr.write(f"error: {text}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
