"""Which worker projects now. It only saves work: correctness comes from the conditional append."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import Redis

from broker_policy.ending import end

TERM = 3.0
"""Seconds a lease holds without being renewed."""
_RENEW_AFTER = 1.0

_HOLD = """
local mine = {}
for place, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  if not holder then
    redis.call('SET', key, ARGV[place + 1], 'PX', ARGV[1])
    mine[place] = 1
  elseif holder == ARGV[place + 1] then
    mine[place] = redis.call('PEXPIRE', key, ARGV[1])
  else
    mine[place] = 0
  end
end
return mine
"""
_GIVE_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Leases:
    """Where the leases of a process are asked for: who can wait a moment is asked for with others."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis
        self._hold = redis.register_script(_HOLD)
        self._asked: list[tuple[str, str, asyncio.Future[bool]]] = []
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # when it ends, by the loop's clock
        self._asking: set[asyncio.Task[None]] = set()

    async def hold(self, key: str, holder: str, within: float) -> bool:
        """Take or keep the lease ``key``; whether ``holder`` has it. Asked for ``within`` so many seconds.

        Raises:
            redis.exceptions.RedisError, OSError: Redis is away; the lease may be taken or not.

        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        self._asked.append((key, holder, answer))
        due = loop.time() + within
        if self._timer is None or self._due > due:
            self._forget_timer()
            self._timer, self._due = loop.call_later(within, self._begin), due
        return await answer

    async def stop(self) -> None:
        """Ask no more; whoever waits for an answer is cancelled."""
        self._forget_timer()
        for _, _, answer in self._asked:
            answer.cancel()
        await end(self._asking)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        asked, self._asked = [each for each in self._asked if not each[2].done()], []
        if asked:
            task = asyncio.create_task(self._ask(asked), name="leases")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, asked: Sequence[tuple[str, str, asyncio.Future[bool]]]) -> None:
        keys, holders, answers = zip(*asked, strict=True)
        try:
            said = await self._hold(keys=keys, args=[int(TERM * 1000), *holders])
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for answer, mine in zip(answers, said, strict=True):
                if not answer.done():
                    answer.set_result(bool(mine))
        finally:
            for answer in answers:
                answer.cancel()  # those that have no answer yet


class Lease:
    """A lease on ``key``; ``name`` tells people who holds it."""

    def __init__(self, leases: Leases, key: str, name: str = "") -> None:
        self._key = key
        self._holder = f"{name}.{secrets.token_hex(8)}"
        self._hold = leases.hold
        self._give_up = leases.redis.register_script(_GIVE_UP)
        self._held_since: float | None = None
        self._unanswered = False  # it may be ours without our knowing

    async def hold(self, *, within: float = 0.0) -> bool:
        """Take or keep the lease; whether it is ours. Asked for ``within`` so many seconds, if at all."""
        now = time.monotonic()
        if self._held_since is not None and now - self._held_since < _RENEW_AFTER:
            return True
        self._unanswered = True
        mine = await self._hold(key=self._key, holder=self._holder, within=within)
        self._unanswered = False
        self._held_since = now if mine else None
        return mine

    async def give_up(self) -> None:
        """Let another worker take it at once, also where ``hold`` was cancelled before it had its answer."""
        if self._held_since is not None or self._unanswered:
            self._held_since, self._unanswered = None, False
            await cast("Any", self._give_up)(keys=[self._key], args=[self._holder])
