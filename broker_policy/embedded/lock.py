"""One ``mas up`` in a folder: a lock that the kernel lets go of however its holder ends.

The lock file says who holds it: process id, since when, and where the broker is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from broker_policy.embedded.errors import AlreadyRunning

_PATIENCE = 0.5
"""Seconds for which a taken lock is tried again: who only looks takes it for a moment too."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a folder."""

    pid: int
    since: str  # ISO 8601, UTC
    address: str  # of the broker

    def __str__(self) -> str:
        return f"process {self.pid} on {self.address}, since {self.since}"


@contextlib.contextmanager
def held(path: Path, holder: LockHolder | None = None) -> Iterator[Callable[[LockHolder], None]]:
    """Hold the lock for the length of the block.

    Who knows only then where the broker will be gives no ``holder``, and says it at once by what it gets.

    Raises:
        AlreadyRunning: another process holds it; the text says which, where and since when.

    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _take(handle, _PATIENCE):
            raise _in_use(path, _read(handle))
        os.ftruncate(handle, 0)
        if holder is not None:
            _write(handle, holder)
        yield functools.partial(_write, handle)
    finally:
        os.close(handle)


def holder_of(path: Path) -> LockHolder | None:
    """Who holds the lock; None when nobody does."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + _PATIENCE
    try:
        while not _take(handle, 0.0):
            if (holder := _read(handle)) or time.monotonic() > deadline:
                return holder
            time.sleep(0.01)  # it was taken, and not yet written
    finally:
        os.close(handle)
    return None


def require_free(path: Path) -> None:
    """Refuse early where ``held`` would.

    Raises:
        AlreadyRunning: another process holds the lock.

    """
    if (holder := holder_of(path)) is not None:
        raise _in_use(path, holder)


def _in_use(path: Path, holder: LockHolder | None) -> AlreadyRunning:
    return AlreadyRunning(
        f"{path.parent} is in use by {holder or 'a process that is just starting'}. "
        f"Use it as it is, or end it first: mas down --folder {path.parent}"
    )


def _take(handle: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _write(handle: int, holder: LockHolder) -> None:
    os.pwrite(handle, json.dumps(asdict(holder)).encode(), 0)


def _read(handle: int) -> LockHolder | None:
    try:
        return LockHolder(**json.loads(os.pread(handle, 4096, 0)))
    except (TypeError, ValueError):
        return None
