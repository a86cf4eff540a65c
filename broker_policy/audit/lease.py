"""Which worker projects now. It only saves work: correctness comes from the conditional append."""

from __future__ import annotations

import secrets
import time
from typing import Any, cast

from redis.asyncio import Redis

TERM = 3.0
"""Seconds a lease holds without being renewed."""
_RENEW_AFTER = 1.0

_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if holder then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """A lease on ``key``; ``name`` tells people who holds it."""

    def __init__(self, redis: Redis, key: str, name: str = "") -> None:
        self._redis: Any = redis
        self._key = key
        self._holder = f"{name}.{secrets.token_hex(8)}"
        self._hold = redis.register_script(_HOLD)
        self._give_up = redis.register_script(_GIVE_UP)
        self._held_since: float | None = None
        self._unanswered = False  # it may be ours without our knowing

    async def hold(self) -> bool:
        """Take or keep the lease; whether it is ours."""
        now = time.monotonic()
        if self._held_since is not None and now - self._held_since < _RENEW_AFTER:
            return True
        milliseconds = int(TERM * 1000)
        self._unanswered = True
        mine = bool(await self._hold(keys=[self._key], args=[self._holder, milliseconds]))
        self._unanswered = False
        self._held_since = now if mine else None
        return mine

    async def give_up(self) -> None:
        """Let another worker take it at once, also where ``hold`` was cancelled before it had its answer."""
        if self._held_since is not None or self._unanswered:
            self._held_since, self._unanswered = None, False
            await cast("Any", self._give_up)(keys=[self._key], args=[self._holder])
