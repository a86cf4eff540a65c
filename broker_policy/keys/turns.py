"""Who changes keys, who makes accounts from them, and who copies them: one after the other.

Whoever has read half of the old keys and half of the new, or pushes accounts as they were before a rotation,
undoes it: agents are locked out, or a retired key is trusted again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mas_nats.errors import ConfigurationError

PATIENCE = 30.0
"""Seconds for which ``mas apply`` and ``mas backup`` wait: a rotation takes a few."""
_POLL = 0.1
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def only_one(keys: Path, patience: float = 0.0) -> Iterator[None]:
    """Be the only one to change or copy ``keys``, and nobody uses them to make accounts meanwhile.

    Raises:
        ConfigurationError: somebody else does for longer than ``patience`` seconds.

    """
    descriptor = os.open(keys / ".rotating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with _held(descriptor, keys, fcntl.LOCK_EX, patience):
        yield


@contextlib.contextmanager
def unchanged(keys: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Make accounts from ``keys``; others may too, but nobody changes them meanwhile.

    Raises: as ``only_one``.
    """
    try:
        descriptor = os.open(keys / ".rotating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        yield  # where keys cannot be written, nobody rotates them
        return
    with _held(descriptor, keys, fcntl.LOCK_SH, patience):
        yield


@contextlib.contextmanager
def _held(descriptor: int, keys: Path, how: int, patience: float) -> Iterator[None]:
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConfigurationError(
                        f"mas keys rotate, mas apply or mas backup is at work with {keys}: wait for its end, "
                        "then repeat"
                    ) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)
