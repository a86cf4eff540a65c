"""A policy worker on a machine whose clock is wrong: ``python -m tests.skewed_worker SECONDS [--blind] …``.

The rest of the command line is the worker's. ``--blind``: it does not measure its clock against the server's.
"""

from __future__ import annotations

import sys
import time

_right, _right_ns = time.time, time.time_ns


def main() -> None:
    """Set the clock, then import and run the worker."""
    seconds = float(sys.argv.pop(1))
    time.time = lambda: _right() + seconds
    time.time_ns = lambda: _right_ns() + int(seconds * 1e9)
    from broker_policy import clock, worker  # noqa: PLC0415 - nothing may take the right time before

    if "--blind" in sys.argv:
        sys.argv.remove("--blind")
        clock.ServerClock.observe = lambda *_: None  # type: ignore[method-assign,assignment]
    worker.main()


if __name__ == "__main__":
    main()
