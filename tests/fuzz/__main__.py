"""``python -m tests.fuzz --seconds 600 --seed 1``: the fuzz tests, again and again with other examples."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for how long")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each round takes the next")
    arguments = parser.parse_args()
    ends, seed = time.monotonic() + arguments.seconds, arguments.seed
    while time.monotonic() < ends:
        print(f"round {seed}: {ends - time.monotonic():.0f} s to go", flush=True)
        command = (sys.executable, "-m", "pytest", "-q", "tests/fuzz", f"--hypothesis-seed={seed}")
        if subprocess.run(command, check=False).returncode:
            print(f"found by: python -m pytest tests/fuzz --hypothesis-seed={seed}")
            return 1
        seed += 1
    print(f"{seed - arguments.seed} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
