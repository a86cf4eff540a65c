"""What data-loss prevention costs a message on its whole way: the same traffic with it on and off, in turns.

``python -m benchmarks.dlp_throughput`` takes about two minutes and prints ratios of medians: on to off.
"""

from __future__ import annotations

import asyncio
import os
import statistics

from benchmarks.pairs import pair
from benchmarks.site import apply_policy, brought_up, prepare
from mas_nats.policy.governance import Dlp, Governance

ROUNDS = 5
PROSE = "The quick brown fox jumps over the lazy dog. "
TEXTS = {
    "1 KB, nothing found": (PROSE * 22, 3_000),
    "1 KB, an e-mail address": (PROSE * 21 + "someone@example.com", 3_000),
    "1 KB, redacted": (PROSE * 21 + "219-09-9999", 3_000),
    "20 KB, nothing found": (PROSE * 450, 1_000),
    "20 KB, an e-mail address": (PROSE * 450 + "someone@example.com", 1_000),
}
CONCURRENCY = 64


async def main() -> None:
    """Print one line for each text."""
    async with brought_up() as (folder, layout, broker):
        await prepare(layout, broker)
        for what, (text, count) in TEXTS.items():
            os.environ["BENCH_TEXT"] = text
            rates: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(ROUNDS):
                for on, found in rates.items():
                    await apply_policy(layout, broker, governance=Governance(dlp=Dlp(enabled=on)))
                    done = await pair(folder, "receive", "send", count, CONCURRENCY)
                    found.append(done["per_second"])
            ratio = statistics.median(rates[True]) / statistics.median(rates[False])
            spread = (max(rates[False]) - min(rates[False])) / statistics.median(rates[False])
            print(
                f"{what:26} off {statistics.median(rates[False]):6.0f}/s  on {ratio:.2f} of that "
                f"(spread of off {spread:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(main())
