"""A Redis that was started writes its append-only file anew, at once, where nobody looked at the file before.

What a kill within a write leaves open in that file is carried out by the start after next, in part
(``broker_policy.embedded.append_only``). ``mas up`` cuts it before it starts a Redis. What others start
writes a new file from what it holds, so that nothing open stays longer than that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

log = logging.getLogger(__name__)

_EVERY = 2.0
"""Seconds between looks whether it is another process."""
_NEVER = -1


async def follow_starts(redis: Redis, cut: Path | None) -> None:
    """Look for starts of Redis, for ever. ``cut`` is the folder of one whose file is cut before its start."""
    known = ""
    while True:
        with contextlib.suppress(RedisError, OSError):  # away: it says so itself when it is back
            known = await renew(redis, known, cut)
        await asyncio.sleep(_EVERY)


async def renew(redis: Redis, known: str, cut: Path | None = None) -> str:
    """Have the file written anew, unless it was since Redis started, or Redis is the one ``known``.

    Returns which one it is. Errors of Redis are raised.
    """
    this = str((await redis.info("server")).get("run_id"))
    if this == known or (cut is not None and await _folder(redis) == str(cut)):
        return this
    file = await redis.info("persistence")
    if file.get("aof_enabled") and file.get("aof_last_rewrite_time_sec") == _NEVER:
        try:
            await redis.bgrewriteaof()  # type: ignore[no-untyped-call]
        except ResponseError as error:  # it may not, cannot, or another worker was faster
            log.info("Redis does not write its append-only file anew: %s", error)
        else:
            log.info("Redis has been started: it writes its append-only file anew")
    return this


async def _folder(redis: Redis) -> str:
    return str((await redis.config_get("dir")).get("dir"))
