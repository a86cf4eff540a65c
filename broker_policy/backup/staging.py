"""Copying a folder in two passes: everything while it is in use, then what changed since while it is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from broker_policy.containers.parts import GRAFANA_PASSWORD, METRICS_TOKEN
from broker_policy.identity.private_files import private_folder

_LEFT_OUT = frozenset({"logs", "run", "lock", "endpoint.json"})
"""Of a run, not of the installation."""
_RENDERED = frozenset({"nats-server.conf", "redis.conf"})
"""Written anew at each start."""
_SECRETS = frozenset(
    {
        "redis/password",
        "redis/reader-password",
        "telemetry.json",  # headers that let in where traces go, and the token of the metrics
        GRAFANA_PASSWORD,
        METRICS_TOKEN,
    }
)
"""Beside keys."""
_STAGE = ".backup-"
_CLOCK = 2_000_000_000
"""Nanoseconds: a file that was changed so shortly before it was copied may have been changed again without
its time showing it, since the clocks of file systems are coarse."""

_Seen = tuple[int, int, int]  # inode, size, time of the last change; a time of 0 never counts as unchanged


def stage_name(token: str) -> str:
    """The name of a staging folder, which is never part of a backup."""
    return _STAGE + token


def belongs(name: str) -> bool:
    """Whether the file ``name`` (relative, with slashes) belongs into a backup."""
    path = PurePosixPath(name)
    first, last = path.parts[0], path.name
    if first in _LEFT_OUT or first.startswith(".") or last in _RENDERED:
        return False  # with a dot: the draft of a file or folder, of a backup too
    if first != "nats" and last.startswith("."):
        return False  # the draft of a file that is just being written
    return path.suffix not in (".log", ".out") and not (first == "redis" and last.startswith("temp-"))


def secret(name: str) -> bool:
    """Whether the file holds a key, a password or a token: left out where keys are kept elsewhere."""
    first, *rest = PurePosixPath(name).parts
    if first == "keys":
        return rest[:1] != ["public"]
    if first in ("authority", "route-authority") or name in _SECRETS:
        return True
    return first == "certs" and name.endswith(".key")


def files(root: Path) -> Iterator[str]:
    """The files under ``root`` that belong into a backup, sorted, relative, with slashes."""
    found = []
    entered = {root.resolve()}
    for folder, inner, names in os.walk(root, followlinks=True):  # data may lie on another disk
        inner[:] = [name for name in inner if not name.startswith(_STAGE)]
        for name in list(inner):
            if (place := (Path(folder) / name).resolve()) in entered:
                inner.remove(name)
            entered.add(place)
        at = Path(folder)
        found += [(at / name).relative_to(root).as_posix() for name in names if not _lost(at / name)]
    for name in sorted(found):
        if belongs(name):
            yield name


def _lost(file: Path) -> bool:
    """Whether it is a killed broker's link to memory that is gone (``embedded/batch_folders.py``).

    Any other link to nowhere makes the backup fail: a disk that is not mounted.
    """
    return file.name == "batches" and file.is_symlink() and not file.exists()


def size_of(root: Path) -> int:
    """The bytes that a backup of ``root`` would hold now."""
    size = 0
    for name in files(root):
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            size += (root / name).stat().st_size
    return size


class Staging:
    """A copy of ``source`` in ``stage``. Call ``copy`` while it is in use, then ``complete``."""

    def __init__(self, source: Path, stage: Path) -> None:
        self._source = source
        self._stage = stage
        self._seen: dict[str, _Seen] = {}

    def copy(self) -> None:
        """The first pass."""
        for name in files(self._source):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile, like any log block
                inode, size, changed = self._look(name)
                settled = time.time_ns() - changed > _CLOCK
                self._copy(name)
                self._seen[name] = inode, size, changed if settled else 0

    def complete(self) -> None:
        """The second pass, while nothing is being written."""
        there = set(files(self._source))
        for name in self._seen.keys() - there:
            (self._stage / name).unlink()
        for name in there:
            now, seen = self._look(name), self._seen.get(name)
            if seen == now:
                continue
            if seen is not None and seen[0] == now[0] and name.endswith(".aof"):
                self._append(name)  # Redis only ever appends to it
            else:
                self._copy(name)

    def _look(self, name: str) -> _Seen:
        status = (self._source / name).stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _copy(self, name: str) -> None:
        target = self._stage / name
        private_folder(target.parent)
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        shutil.copyfile(self._source / name, target)
        target.chmod(0o600)

    def _append(self, name: str) -> None:
        target = self._stage / name
        with (self._source / name).open("rb") as source, target.open("ab") as copy:
            source.seek(copy.tell())
            shutil.copyfileobj(source, copy, 1 << 20)
