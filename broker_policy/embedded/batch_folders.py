"""Where a nats-server gathers atomic batches: in memory, instead of on the disk.

Until the last message of a batch has come, nats-server keeps its messages in a folder made for it; then it
stores them in their stream, with one sync, and acknowledges. The folder costs five syncs more, also where
nothing else is synced (2.15.1, ``newBatchStore``): most of the time that a small batch takes. It only
serves to complete a batch that was being stored when the server ended, which nobody was told of. In memory it
outlives the server, not the machine; what a power cut leaves of such a batch the projector finds (ADR 39).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from broker_policy.embedded.nats_server import server_name
from mas_nats.wire.subjects import INBOX_STREAM

MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, which Linux has; what lies there is private
_ROOM = 32 << 20
"""Bytes that must be free: some batches of 4 MB for each worker."""
_LEAST = 16 << 20
"""With less than that free the disk is used again: what does not fit is refused, and goes singly."""
_PATIENCE = 5.0
"""Seconds that a batch may take. What is in a full place for longer did not fit, and was left there."""
_FORGOTTEN = 10.0
"""Seconds after which the server gives up a batch that does not go on (``streamDefaultMaxBatchTimeout``)."""
_EVERY, _SOON = 1.0, 0.05  # seconds between two looks; the second while a folder was in use


class BatchFolders:
    """Keeps the folders for batches of one server in memory. The server removes the links when it starts.

    ``folder`` is the server's, ``stream`` what the streams are called, one in each account. Only for a server
    that is no node of a cluster: those gather in memory anyway.
    """

    def __init__(self, folder: Path, *, stream: str = INBOX_STREAM, memory: Path = MEMORY) -> None:
        self._store = folder.absolute() / "jetstream"
        self._stream = stream
        self._place = memory / server_name(folder)

    def prepare(self, room: int = _ROOM) -> bool:
        """Make the place, for this user only; False where there is none, or less than ``room`` bytes."""
        try:
            if shutil.disk_usage(self._place.parent).free < room:
                return False
            with contextlib.suppress(FileExistsError):
                self._place.mkdir(mode=0o700)
            return self._private()
        except OSError:
            return False

    def _private(self) -> bool:
        try:
            found = self._place.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077

    def link(self) -> bool:
        """Link what is there; False when something was in use or vanished: worth another try."""
        linked = [self._linked(stream) for stream in self._streams()]
        return all(linked)

    def _linked(self, stream: Path) -> bool:
        batches, place = stream / "batches", self._place_of(stream)
        try:
            if batches.is_symlink():
                if batches.readlink() == place and place.is_dir():
                    return True
                batches.unlink()
            # The server has removed the link, and so has completed what it could.
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                batches.rmdir()  # which fails while it holds a batch
            batches.symlink_to(place)
        except OSError:
            return False
        return True

    def unlink(self, *, in_use: bool = False) -> bool:
        """Have batches gathered on the disk again; False while one is in its place, unless ``in_use`` too."""
        unlinked = [self._unlinked(stream, in_use=in_use) for stream in self._streams()]
        return all(unlinked)

    def _unlinked(self, stream: Path, *, in_use: bool) -> bool:
        batches = stream / "batches"
        try:
            if batches.is_symlink():
                if self._private() and not in_use:
                    with contextlib.suppress(FileNotFoundError):
                        self._place_of(stream).rmdir()  # first: which fails while it holds a batch
                batches.unlink()
        except OSError:
            return False
        return True

    def discard(self) -> None:
        """Remove what was left in memory where batches are gathered on the disk again."""
        for stream in self._streams() if self._private() else ():
            if not (stream / "batches").is_symlink():
                shutil.rmtree(self._place_of(stream), ignore_errors=True)

    def _streams(self) -> Iterator[Path]:
        return self._store.glob(f"*/streams/{self._stream}")

    def _place_of(self, stream: Path) -> Path:
        return self._place / f"{stream.parents[1].name}.{stream.name}"

    async def follow(self) -> None:
        """Link what comes, until cancelled: streams are made, and servers start, at any time."""
        usable, left = False, time.monotonic() + _PATIENCE
        while True:
            # The place may vanish or fill up, and somebody else's come: it is looked at each time.
            usable = await asyncio.to_thread(self.prepare, _LEAST if usable else _ROOM)
            if usable:
                done, left = await asyncio.to_thread(self.link), time.monotonic() + _PATIENCE
            else:
                late = time.monotonic() - left
                done = await asyncio.to_thread(self.unlink, in_use=late > 0)
                if done and late > _FORGOTTEN:
                    await asyncio.to_thread(self.discard)
            await asyncio.sleep(_EVERY if done else _SOON)

    def remove(self) -> None:
        """Remove what is empty, once the server has ended: it completes the rest when it starts."""
        with contextlib.suppress(OSError):
            for place in self._place.iterdir() if self._private() else ():
                with contextlib.suppress(OSError):
                    place.rmdir()
            self._place.rmdir()
        self.unlink()
