"""Files only their owner may read, and that a power cut leaves as they were or as they are."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def private_folder(folder: Path) -> Path:
    """Make ``folder``, and the parents that are missing, with mode 0700 and return it."""
    if not folder.parent.exists():
        private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_private(path: Path, content: bytes) -> Path:
    """Write ``content`` with mode 0600, at once: a reader sees the old file or the new one.

    When it returns, the file and its name are on the disk.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk: what was made, renamed or removed in it.

    Some network file systems cannot be asked for that; there it is left to them.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Have everything under ``root`` on the disk, with its names; links are not followed."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
