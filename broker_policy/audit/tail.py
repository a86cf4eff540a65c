"""The end of the chain as one projector believes it: right as long as its appends succeed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from broker_policy.audit.draft import Draft, Head
from broker_policy.audit.numbering import WriterState
from broker_policy.audit.store import Store

_TIMEOUT = 30.0
"""Seconds after which Redis counts as away."""


class Overtaken(Exception):
    """Another projector appended first; nothing was changed. Read the end again and go on from there."""


class Tail:
    """Head and writers, read from Redis when they are not known.

    Everything that an append depends on must be read between ``refresh`` and ``append``: what another
    projector appends meanwhile makes the append fail.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self.store = store
        self._clock = clock
        self._head: Head | None = None
        self.writers: dict[str, WriterState] = {}
        self.begun = 0
        """How often the log was begun again since it was lost or cut off."""

    @property
    def head(self) -> Head:
        """Where the chain ends; after ``refresh`` only."""
        if self._head is None:
            raise RuntimeError("the end of the chain is not known: call refresh() first")
        return self._head

    def now(self) -> int:
        """The time in unix milliseconds."""
        return int(self._clock() * 1000)

    def forget(self) -> None:
        """Read the end again at the next ``refresh``."""
        self._head = None

    async def refresh(self) -> None:
        """Read head and writers, unless they are known.

        Raises:
            redis.exceptions.RedisError, TimeoutError: Redis is away.

        """
        if self._head is not None:
            return
        async with asyncio.timeout(_TIMEOUT):
            head = await self.store.head()
            raw: dict[bytes, bytes] = await self.store.redis.hgetall(self.store.layout.writers)
            if await self.store.head() != head:
                raise Overtaken
        self.writers = {writer.decode(): WriterState.decode(state) for writer, state in raw.items()}
        self._head = head

    def draft(self) -> Draft:
        """An empty append to the end as it is known."""
        return Draft(self.store.layout, self.head)

    async def append(self, draft: Draft, seen: Mapping[str, WriterState | None] | None = None) -> None:
        """Append, and take over what it changes.

        Raises:
            Overtaken: another projector was faster.
            redis.exceptions.RedisError, TimeoutError: Redis is away; it may be appended or not.

        """
        self._head = None
        async with asyncio.timeout(_TIMEOUT):
            done = await self.store.append(draft)
        if not done:
            raise Overtaken
        for writer, state in (seen or {}).items():
            if state is None:
                self.writers.pop(writer, None)
            else:
                self.writers[writer] = state
        self._head = draft.head
        if draft.sequence < draft.base.sequence:
            self.begun += 1

    async def pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Run reading commands in one round trip."""
        async with asyncio.timeout(_TIMEOUT), self.store.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(await pipe.execute())
