"""What the costliest content costs, beside prose of the same size: ``python -m benchmarks.dlp_worst``."""

from __future__ import annotations

import time

from broker_policy.dlp import judge, ruleset
from mas_nats.policy.governance import Dlp
from tests.nasty import CONTENTS

SIZE = 1_000_000


def main() -> None:
    """Print one line for each content."""
    rules = ruleset(Dlp())
    prose = b'{"text": "' + b"the quick brown fox jumps over the lazy dog and sleeps " * (SIZE // 55) + b'"}'
    floor = _seconds(lambda: judge(rules, prose))
    print(f"prose: {floor * 1000:.1f} ms a megabyte")
    for name, make in CONTENTS.items():
        body = make(SIZE)
        taken = _seconds(lambda body=body: judge(rules, body))
        judgement = judge(rules, body)
        found = ",".join(judgement.types) if judgement else "-"
        print(
            f"{name:28} {len(body):8} bytes {taken * 1000:8.0f} ms {taken / floor:7.0f} x  {found}",
            flush=True,
        )


def _seconds(run: object) -> float:
    best = float("inf")
    for _ in range(2):
        begun = time.process_time()
        run()  # type: ignore[operator]
        best = min(best, time.process_time() - begun)
    return best


if __name__ == "__main__":
    main()
