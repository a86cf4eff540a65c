"""Redis as the counters use it: it answers within a bounded time, or is left alone until it answers again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from broker_policy.ending import end

log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that a commit lane may wait for the counters."""
_LOOK_EVERY = 0.5
_PROBE = "mas:counters:probe"


class Away(Exception):
    """Redis did not answer in time, or not as it should. Every worker is on its own for now."""


class Counters:
    """The Redis of the counters, shared by all namespaces of a worker. ``redis`` None: there is none."""

    def __init__(self, redis: Redis | None, *, patience: float = PATIENCE) -> None:
        self._redis = redis
        self._patience = patience
        self._away = redis is None
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    def at(cls, url: str, *, patience: float = PATIENCE) -> Counters:
        """Connect to ``url`` when it is first needed. Nothing is repeated: what counts would count twice."""
        retry = Retry(NoBackoff(), 0)
        return cls(
            Redis.from_url(url, socket_timeout=patience, socket_connect_timeout=patience, retry=retry),
            patience=patience,
        )

    @property
    def away(self) -> bool:
        """Whether Redis is not asked at the moment."""
        return self._away

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script: by its digest, and whole where Redis does not know it (any more).

        Raises:
            Away: it is not known whether it ran.

        """
        if self._away or self._redis is None:
            raise Away
        try:
            running = self._redis.register_script(script)(keys=keys, args=arguments)
            return await asyncio.wait_for(running, self._patience)
        except (RedisError, OSError, TimeoutError) as error:
            self._lost(error)
            raise Away from error

    async def close(self) -> None:
        """Disconnect."""
        if self._looking is not None:
            await end([self._looking])
        if self._redis is not None:
            await self._redis.aclose()

    def _lost(self, error: Exception) -> None:
        if self._away:
            return
        self._away = True
        log.warning(
            "Redis does not count (%s: %s): each worker enforces its share of the rate limits and keeps its "
            "own circuits until it does",
            type(error).__name__,
            error,
        )
        self._looking = asyncio.create_task(self._look(), name="counters")

    async def _look(self) -> None:
        """Wait until Redis can be written to: one that is full answers pings."""
        redis: Any = self._redis
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                await asyncio.wait_for(redis.set(_PROBE, "1", px=1000), self._patience)
            except (RedisError, OSError, TimeoutError):
                continue
            self._away = False
            log.info("Redis counts again: rate limits are exact over all workers")
            return
