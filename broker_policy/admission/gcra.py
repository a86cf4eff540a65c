"""The generic cell rate algorithm: a rate with a burst, kept in one number for each limit.

The number is the *theoretical arrival time* (TAT): when the next message would be due if all came evenly.
A message of a limit of N a minute moves it on by ``interval`` = a minute / N; a message is refused where that
would put it more than ``most`` = burst * interval after now. So in any span of t seconds at most
burst + t * N / 60 messages pass. (ITU-T I.371; "virtual scheduling".)

Both forms of it decide a whole batch in its order, and check all limits of a message before any is consumed.
Times are in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from mas_nats.policy.governance import RateLimits

MINUTE = 60_000_000
HOUR = 60 * MINUTE
_SLACK = 60_000
"""Milliseconds that a key outlives its meaning, so that a clock that is set back does not free anybody."""
_MANY = 10_000
"""Keys kept in memory before those that mean nothing any more are forgotten."""
_FAR = 1 << 60
"""No burst is longer (36,000 years): both forms count in 64 bits."""

SCRIPT = f"""
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local limits, routes = cjson.decode(ARGV[2]), cjson.decode(ARGV[3])
local stored, tat, moved, refused = redis.call('MGET', unpack(KEYS)), {{}}, {{}}, {{}}
for k, limit in ipairs(limits) do
  tat[k] = math.min(math.max(tonumber(stored[k] or now), now), now + limit[2])
end
for place, route in ipairs(cjson.decode(ARGV[4])) do
  local longest, which = 0, nil
  for _, k in ipairs(routes[route]) do
    local wait = tat[k] + limits[k][1] - now - limits[k][2]
    if wait > longest then longest, which = wait, k end
  end
  if which then
    refused[#refused + 1] = {{place - 1, which - 1, longest}}
  else
    for _, k in ipairs(routes[route]) do
      tat[k] = tat[k] + limits[k][1]
      moved[k] = true
    end
  end
end
for k in pairs(moved) do
  local life = math.ceil((tat[k] - now) / 1000) + {_SLACK}
  redis.call('SET', KEYS[k], string.format('%.0f', tat[k]), 'PX', string.format('%.0f', life))
end
return refused
"""
"""KEYS: one for each limit. ARGV: now ("": by Redis's clock), limits [interval, most] as KEYS, routes (which
limits a message meets, by place from 1), calls (their routes, by place from 1). Returns what is refused:
place of the call, place of the limit that it waits for longest, and for how long."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a sender, or of a sender to each target (``pair``)."""

    rule: str  # as the setting is called
    count: int
    span: str  # "minute" or "hour"
    interval: int
    most: int
    pair: bool

    def share(self, workers: int) -> Limit:
        """What one of so many workers enforces by itself: its part of the rate, and one message at least."""
        interval = self.interval * workers
        at_once = max(1, self.most // interval)
        return Limit(self.rule, self.count, self.span, interval, at_once * interval, self.pair)


def limits_of(rates: RateLimits) -> tuple[Limit, ...]:
    """The limits that are set. A burst is meant for the shorter span."""
    found = []
    for pair, minute, hour in (
        (False, rates.per_minute, rates.per_hour),
        (True, rates.pair_per_minute, rates.pair_per_hour),
    ):
        prefix = "pair_per_" if pair else "per_"
        for span, length, count, burst in (
            ("minute", MINUTE, minute, rates.burst),
            ("hour", HOUR, hour, 0 if minute else rates.burst),
        ):
            if count:
                interval = -(-length // count)  # rounded up: rather too slow than too fast
                most = min(interval * (burst or count), _FAR)
                found.append(Limit(prefix + span, count, span, interval, most, pair))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in their order, and which limits each meets; the keys that two share appear once."""

    keys: list[str]
    limits: list[Limit]
    routes: list[list[int]]  # places of keys
    calls: list[int]  # places of routes

    @classmethod
    def of(cls, messages: Sequence[tuple[str, str]], limits: Sequence[Limit]) -> Batch:
        """Of ``messages`` as sender and target."""
        places: dict[str, int] = {}
        held: list[Limit] = []
        routes: dict[tuple[str, str], int] = {}
        found: list[list[int]] = []
        calls = []
        for message in messages:
            route = routes.get(message)
            if route is None:
                route = routes[message] = len(found)
                sender, target = message
                met = []
                for limit in limits:
                    key = f"{sender}>{target}:{limit.span}" if limit.pair else f"{sender}:{limit.span}"
                    place = places.setdefault(key, len(held))
                    if place == len(held):
                        held.append(limit)
                    met.append(place)
                found.append(met)
            calls.append(route)
        return cls(list(places), held, found, calls)

    def arguments(self, now: int | None) -> list[str | bytes]:
        """As ``SCRIPT`` takes them."""
        return [
            "" if now is None else str(now),
            orjson.dumps([[limit.interval, limit.most] for limit in self.limits]),
            orjson.dumps([[place + 1 for place in route] for route in self.routes]),
            orjson.dumps([route + 1 for route in self.calls]),
        ]


@dataclass(frozen=True, slots=True)
class Excess:
    """A message that is one too many: the limit that it would have to wait for longest, and how long."""

    place: int  # of the message in its batch
    limit: Limit
    wait: int


class OwnRates:
    """The same in a worker's memory, for a worker that is on its own."""

    def __init__(self) -> None:
        self._tat: dict[str, int] = {}

    def admit(self, batch: Batch, now: int) -> list[Excess]:
        """Those of ``batch`` that are too many; the others are counted."""
        tat = [
            min(max(self._tat.get(key, now), now), now + limit.most)
            for key, limit in zip(batch.keys, batch.limits, strict=True)
        ]
        refused = []
        for place, route in enumerate(batch.calls):
            longest, which = 0, None
            for k in batch.routes[route]:
                limit = batch.limits[k]
                if (wait := tat[k] + limit.interval - now - limit.most) > longest:
                    longest, which = wait, limit
            if which is not None:
                refused.append(Excess(place, which, longest))
                continue
            for k in batch.routes[route]:
                tat[k] += batch.limits[k].interval
        self._tat.update(zip(batch.keys, tat, strict=True))
        if len(self._tat) > _MANY:
            self._tat = {key: due for key, due in self._tat.items() if due > now}
        return refused
