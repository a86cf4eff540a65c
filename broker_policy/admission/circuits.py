"""Where circuits are kept: in Redis for all workers, changed by compare and set; else in a worker's memory.

``mas:breaker:<ns>:of:<agent>``  a circuit that has something to remember, for as long as it has
``mas:breaker:<ns>:open``        sorted set: agents whose circuit is not closed, by when that is forgotten
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from broker_policy.admission.circuit import Circuit, current
from broker_policy.admission.counters import Away, Counters
from mas_nats.policy.governance import CircuitBreaker

_READ = "local now = redis.call('TIME') return {now[1], now[2], redis.call('GET', KEYS[1]) or ''}"
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if ARGV[5] == '' then
  redis.call('ZREM', KEYS[2], ARGV[4])
else
  redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[3])))
end
return 1
"""
_LIST = """
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] * 1000)
local found = {time[1], time[2]}
for _, agent in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  found[#found + 1] = agent
  found[#found + 1] = redis.call('GET', ARGV[1] .. agent) or ''
end
return found
"""
_ATTEMPTS = 20

Now = Callable[[], int | None]


class Changed(NamedTuple):
    """A circuit before and after a change, at ``now``."""

    before: Circuit
    after: Circuit
    now: int


Change = Callable[[Circuit, int], Circuit]
"""What becomes of a circuit at some time."""


class SharedCircuits:
    """In Redis. ``now``, for tests: unix milliseconds instead of Redis's own."""

    def __init__(self, counters: Counters, namespace: str, now: Now = lambda: None) -> None:
        self._counters = counters
        self._prefix = f"mas:breaker:{namespace}:of:"
        self._open = f"mas:breaker:{namespace}:open"
        self._now = now

    async def change(self, agent: str, settings: CircuitBreaker, change: Change) -> Changed:
        """Change a circuit, atomically.

        Raises:
            Away: Redis did not answer, or others were faster all the time.

        """
        key = self._prefix + agent
        for attempt in range(_ATTEMPTS):
            seconds, micros, raw = await self._counters.run(_READ, [key], [])
            now = self._time(seconds, micros)
            before = _read(raw)
            after = change(before, now)
            if after == before:
                return Changed(before, after, now)
            life = after.life(settings, now)
            arguments = [raw, after.encode(), life, agent, now + life if after.until else ""]
            if await self._counters.run(_SWAP, [key, self._open], arguments):
                return Changed(before, after, now)
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
        raise Away

    async def unsettled(self, settings: CircuitBreaker) -> tuple[dict[str, Circuit], int]:
        """The circuits that are not closed, and what time it is.

        Raises: as ``change``.
        """
        seconds, micros, *found = await self._counters.run(_LIST, [self._open], [self._prefix])
        now = self._time(seconds, micros)
        circuits = {
            agent.decode(): current(_read(raw), settings, now)
            for agent, raw in zip(found[::2], found[1::2], strict=True)
        }
        return {agent: circuit for agent, circuit in circuits.items() if circuit.until}, now

    def _time(self, seconds: bytes, micros: bytes) -> int:
        given = self._now()
        return int(seconds) * 1000 + int(micros) // 1000 if given is None else given


class OwnCircuits:
    """In this worker's memory, while Redis is away. ``now``: unix milliseconds."""

    def __init__(self, now: Now = lambda: None) -> None:
        self._now = now
        self.circuits: dict[str, Circuit] = {}

    def change(self, agent: str, change: Change) -> Changed:
        """Change a circuit."""
        now = self.now()
        before = self.circuits.get(agent, Circuit())
        after = change(before, now)
        if after == Circuit():
            self.circuits.pop(agent, None)
        else:
            self.circuits[agent] = after
        return Changed(before, after, now)

    def unsettled(self, settings: CircuitBreaker) -> tuple[dict[str, Circuit], int]:
        """The circuits that are not closed, and what time it is."""
        now = self.now()
        self.circuits = {
            agent: found
            for agent, circuit in self.circuits.items()
            if (found := current(circuit, settings, now)) != Circuit()
        }
        return {agent: circuit for agent, circuit in self.circuits.items() if circuit.until}, now

    def now(self) -> int:
        """What time it is."""
        given = self._now()
        return time.time_ns() // 1_000_000 if given is None else given


def _read(raw: bytes) -> Circuit:
    try:
        return Circuit.decode(raw)
    except ValueError:  # nobody's work of ours: a circuit that cannot be read is closed, and written anew
        return Circuit()
