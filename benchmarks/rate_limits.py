"""What rate limits cost a message: a batch is judged with and without them, on a real Redis.

``python -m benchmarks.rate_limits`` prints microseconds a message. The Redis is as ``mas up`` starts it, and
once more with a flush every second only.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from broker_policy.admission.admission import Admission
from broker_policy.admission.counters import Counters
from broker_policy.admission.rates import Rates
from broker_policy.embedded.redis_server import RedisServer
from broker_policy.pipeline import judge
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.policy.table import Table

MANY = 10**7
SENDERS = 32
LIMITS = {
    "off": RateLimits(),
    "a minute": RateLimits(per_minute=MANY),
    "all four": RateLimits(
        per_minute=MANY, per_hour=MANY, pair_per_minute=MANY, pair_per_hour=MANY, burst=MANY
    ),
}


class Closed:
    """A circuit breaker with nothing to break."""

    quiet = True

    def concerns(self, target: str) -> bool:  # noqa: ARG002
        """Never asked."""
        return False

    async def admit(self, messages: Sequence[tuple[str, str]]) -> list[Refusal | bool]:
        """Never asked."""
        return [False] * len(messages)

    def foresee(self, target: str) -> Refusal | None:
        """Nothing."""


def table(limits: RateLimits) -> Table:
    """Everybody may reach everybody."""
    agents = [f"a{number}" for number in range(SENDERS)]
    return Table.compile(
        Document(
            namespace="bench",
            account="",
            agents={agent: AgentPolicy(account="") for agent in agents},
            permissions={agent: Permissions(allowed_targets=("*",)) for agent in agents},
            governance=Governance(rate_limit=limits),
        ),
        1,
    )


def batch(size: int) -> list[Call]:
    """Messages of some senders to some targets, in turn."""
    return [
        Call(
            f"a{n % SENDERS}",
            "send",
            b'{"text": "hello"}',
            "",
            message_id=f"m{n}",
            target=f"a{n * 7 % SENDERS}",
            type="work",
        )
        for n in range(size)
    ]


async def one(admission: Admission, policy: Table, size: int) -> float:
    """Seconds for one batch."""
    calls = batch(size)
    begun = time.perf_counter()
    permitted = [call for call in calls if judge(call, policy) is None]
    if admission.concerns(policy):
        assert not any(await admission.admit(permitted, policy))
    return time.perf_counter() - begun


async def measure(size: int, rounds: int, *, relaxed: bool) -> None:
    """Print one line for each set of limits."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), relaxed=relaxed)
        await server.start()
        counters = Counters.at(server.url)
        rates = Rates(counters, "bench", workers=lambda: 1)
        admission = Admission("bench", rates, Closed(), known=lambda _: False)
        try:
            for name, limits in LIMITS.items():
                policy = table(limits)
                took = [await one(admission, policy, size) for _ in range(rounds)]
                microseconds = sorted(1e6 * each / size for each in took[rounds // 10 :])
                p50, p99 = statistics.median(microseconds), microseconds[int(0.99 * len(microseconds))]
                how = "every second" if relaxed else "always"
                print(f"batch {size:4} fsync {how:12} {name:10} p50 {p50:6.2f} p99 {p99:6.2f} µs a message")
        finally:
            await counters.close()
            server.kill()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 16, 256])
    parser.add_argument("--rounds", type=int, default=400)
    arguments = parser.parse_args()
    for relaxed in (False, True):
        for size in arguments.sizes:
            asyncio.run(measure(size, arguments.rounds, relaxed=relaxed))


if __name__ == "__main__":
    main()
