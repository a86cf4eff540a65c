"""Folders that are filled beside their place, and what is left of them where their maker was killed.

Whoever fills one holds a lock on it, which the kernel lets go of however its holder ends: one that nobody
holds is nobody's any more. They hold private keys, so that none may stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from broker_policy.identity.private_files import private_folder

_DIGITS = "[0-9a-f]" * 8
"""What ``secrets.token_hex(4)`` makes of the end of a name."""


@contextlib.contextmanager
def filled(draft: Path) -> Iterator[None]:
    """Make the folder ``draft`` and hold it; what is at its place at the end is removed."""
    handle = _made(draft)
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(handle)


def remove_abandoned(parent: Path, start: str) -> None:
    """Remove the folders of ``parent`` called ``start`` and eight hexadecimal digits that nobody holds."""
    for draft in parent.glob(f"{start}{_DIGITS}"):
        try:
            handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, or gone meanwhile
            continue
        try:
            if _lock(handle):
                shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(handle)


def _made(draft: Path) -> int:
    while True:
        private_folder(draft)
        handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
        # Somebody who tidies up may have seen it before it was held.
        if _lock(handle) and draft.exists():
            return handle
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
