"""Whether the storage below the logs has room. It is looked at before, never found out by filling it.

A nats-server whose disk is full, or whose ``max_file_store`` is reached, stores a part of an atomic batch and
does not answer; after a full disk the stream takes nothing more until the server is started again (tried on
nats-server 2.15.1, ADR 14).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5
"""Seconds between two looks. What is written meanwhile must fit into the reserve."""
RESERVE = 256 << 20
"""Bytes left free, or a tenth of the storage where that is less: room for what is under way, and for the
audit, which still grows while the log drains into it."""


@dataclass(frozen=True, slots=True)
class Space:
    """One storage: its name for people, its size and what is free of it, in bytes."""

    name: str
    size: int
    free: int

    @property
    def low(self) -> bool:
        """Whether its reserve is touched."""
        return self.free < min(RESERVE, self.size // 10)


Look = Callable[[], Awaitable[Sequence[Space]]]


class DiskRoom:
    """The storage below all logs of one worker. What cannot be looked at is as it was."""

    def __init__(self, *looks: Look) -> None:
        self._looks = looks
        self._low: dict[Look, Sequence[Space]] = {}

    @property
    def full(self) -> bool:
        """Whether nothing more may be accepted."""
        return any(self._low.values())

    async def look(self) -> None:
        """Look at every storage once."""
        before = self.full
        for each in self._looks:
            try:
                self._low[each] = [space for space in await each() if space.low]
            except Exception as error:  # noqa: BLE001 - a server that is away says nothing about its disk
                log.debug("a storage cannot be looked at: %r", error)
        if self.full and not before:
            shown = "; ".join(f"{space.name} has {space.free >> 20} MB left" for space in self._spaces())
            log.error("refusing messages with LOG_FULL: %s. Free some, or give it more", shown)
        elif before and not self.full:
            log.info("the storage has room again")

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    def _spaces(self) -> list[Space]:
        return [space for spaces in self._low.values() for space in spaces]


def local_disk(folder: Path) -> Look:
    """The disk that holds ``folder``, on this machine."""

    async def look() -> Sequence[Space]:
        usage = await asyncio.to_thread(shutil.disk_usage, folder)
        return [Space(f"the disk of {folder}", usage.total, usage.free)]

    return look


def jetstream_store(summaries: Callable[[], Awaitable[Sequence[dict[str, Any]]]]) -> Look:
    """What nats-servers may store, as their JSZ ``summaries`` say it."""

    async def look() -> Sequence[Space]:
        return [
            Space("max_file_store of a nats-server", most, most - int(summary["storage"]))
            for summary in await summaries()
            if (most := int((summary.get("config") or {}).get("max_storage", 0))) > 0
        ]

    return look
