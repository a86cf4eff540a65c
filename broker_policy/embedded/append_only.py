"""What a redis-server that was killed while it wrote leaves at the end of its append-only file.

A script's writes lie there between ``MULTI`` and ``EXEC``. Of a block that is there in part redis-server cuts
off the torn command only (``aof-load-truncated``), and appends what comes next: the block stays open. The
next ``EXEC`` then ends both, so that the start after that carries out the part, and the audit's chain holds
entries that nobody appended. Seen with 6.2.14; Valkey mends it in its pull request 4342.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_OPENS, _CLOSES = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
_NAME = "appendonly.aof"


class _Torn(Exception):
    """The file ends within a command."""


def cut_open_block(folder: Path) -> int:
    """Cut the block that is open at the end of what redis-server appended in ``folder``; how many bytes.

    No redis-server may have the file open.

    Raises:
        OSError: the file cannot be read or written.

    """
    if (path := _appended_to(folder)) is None or not path.stat().st_size:
        return 0
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            size, begin = len(content), content.rfind(_OPENS)
            if begin < 0 or not _stays_open(content, begin):
                return 0
        file.truncate(begin)
        os.fsync(file.fileno())
    return size - begin


def _appended_to(folder: Path) -> Path | None:
    """The one file at whose end redis-server goes on: since version 7 the last of several."""
    if (alone := folder / _NAME).is_file():
        return alone
    parts = folder / "appendonlydir"
    try:
        lines = (parts / f"{_NAME}.manifest").read_text().splitlines()
    except FileNotFoundError:
        return None
    last = [words[1] for words in map(str.split, lines) if words[:1] == ["file"] and words[-1] == "i"]
    return parts / last[-1] if last and (parts / last[-1]).is_file() else None


def _stays_open(content: mmap.mmap, at: int) -> bool:
    """Whether commands follow from ``at`` to the end, the last of them whole or not, and none is ``EXEC``."""
    try:
        while at < len(content):
            if content[at : at + len(_CLOSES)] == _CLOSES:
                return False
            at = _after_command(content, at)
    except _Torn:
        return True
    except ValueError:
        return False  # no commands: what was taken for a beginning is something else
    return True


def _after_command(content: mmap.mmap, at: int) -> int:
    count, at = _number(content, at, b"*")
    for _ in range(count):
        length, at = _number(content, at, b"$")
        at += length + 2
        if at > len(content):
            raise _Torn
        if content[at - 2 : at] != b"\r\n":
            raise ValueError
    return at


def _number(content: mmap.mmap, at: int, kind: bytes) -> tuple[int, int]:
    end = content.find(b"\r\n", at, at + 16)
    if end < 0:
        if at + 16 > len(content):
            raise _Torn
        raise ValueError
    if content[at : at + 1] != kind:
        raise ValueError
    return int(content[at + 1 : end]), end + 2
