"""A file of JSON lines with rotation, whose end says how far it goes (ADR 26).

    {"audit":"mas","namespace":…,"after":[index,hash],"v":1}    the first line of each file
    {"e":{…the entry…},"h":"…its hash…"}                         every entry, in the order of the chain
    {"gap":[first,last]}                                         entries that the chain no longer had
    {"fork":[index,hash]}                                        the chain goes on after that entry, otherwise

Nothing else remembers the place, so file and place cannot disagree: what a crash cut off is cut away and
written again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mas_nats.errors import MasError

_BACK = 1 << 16


class NotACopy(MasError):
    """The file that shall be written holds something else. It is not touched."""


@dataclass(frozen=True, slots=True)
class Place:
    """The last entry that a file holds; index 0 and no hash before the first."""

    index: int = 0
    hash: str = ""


class RotatedFile:
    """The file at ``path``, and ``path.1`` (the one before) to ``path.<backups>``.

    Without backups nothing is ever rotated. One process at a time may write it.
    """

    def __init__(self, path: Path, namespace: str, *, max_bytes: int, backups: int) -> None:
        self.path = path
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._backups = backups

    def place(self) -> Place:
        """How far it goes; a line that was not written whole is cut away.

        Raises:
            NotACopy: it is another file, or of another namespace.
            OSError: it cannot be read or cut.

        """
        if self._holds_something():
            with self.path.open("rb") as file:
                self._require_mine(file, self.path)
            self._cut()
        newest = self.path if self._holds_something() else self.numbered(1)
        for line in self.backwards(newest):
            return line
        return Place()

    def append(self, lines: list[bytes], after: Place) -> None:
        """Write whole lines, which come after ``after``, and have them on the disk on return.

        Raises:
            OSError: the disk is full, or the like; some lines may be there. Ask for ``place`` again.

        """
        if not self._holds_something():  # also what was emptied beside us, as logrotate's copytruncate does
            self._begin(after)
        size = self.path.stat().st_size
        portion: list[bytes] = []
        place = after
        for line in lines:
            if self._backups and size + len(line) > self._max_bytes and (portion or size > _HEADER):
                self._write(portion)
                self._rotate(place)
                portion, size = [], self.path.stat().st_size
            portion.append(line)
            size += len(line)
            place = _place(orjson.loads(line), place)
        self._write(portion)

    def numbered(self, number: int) -> Path:
        """A rotated file."""
        return self.path.with_name(f"{self.path.name}.{number}")

    def _numbers(self) -> list[int]:
        """Those of the rotated files that there are, the newest first."""
        pattern = re.compile(rf"{re.escape(self.path.name)}\.([1-9][0-9]{{0,17}})")
        found = (pattern.fullmatch(each.name) for each in self.path.parent.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def all_backwards(self) -> Iterator[Place]:
        """The entries of this file and of those before it, the last first; what is no copy is passed over.

        Raises:
            OSError: one cannot be read.

        """
        yield from self._readable(self.path)
        for number in self._numbers():  # one may lack, after a crash between renames
            yield from self._readable(self.numbered(number))

    def _readable(self, path: Path) -> Iterator[Place]:
        with contextlib.suppress(NotACopy):
            yield from self.backwards(path)

    def backwards(self, path: Path) -> Iterator[Place]:
        """The entries of one file, the last first, and at the end what came before it.

        Raises:
            NotACopy, OSError: as ``place``.

        """
        if not path.exists():
            return
        with path.open("rb") as file:
            if (header := _line(file.readline())) is None or header.get("audit") != "mas":
                raise NotACopy(f"{path} is not a copy of an audit: give another file_path, or move it away")
            if header.get("namespace") != self._namespace:
                raise NotACopy(
                    f"{path} is the copy of {header.get('namespace')}: each needs its own file_path"
                )
            for raw in _lines_backwards(file):
                line = _line(raw)
                if line is None:
                    continue
                if (found := _place(line, None)) is not None:
                    yield found

    def _holds_something(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _require_mine(self, file: BinaryIO, path: Path) -> None:
        if (header := _line(file.readline())) is None or header.get("audit") != "mas":
            raise NotACopy(f"{path} is not a copy of an audit: give another file_path, or move it away")
        if header.get("namespace") != self._namespace:
            raise NotACopy(f"{path} is the copy of namespace {header.get('namespace')}: give each its own")

    def _cut(self) -> None:
        with self.path.open("r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end:
                first = max(end - _BACK, 0)
                file.seek(first)
                found = file.read(end - first).rfind(b"\n")
                if found >= 0:
                    end = first + found + 1
                    break
                end = first
            if 0 < end < size:
                file.truncate(end)

    def _begin(self, after: Place) -> None:
        """A file that holds nothing yet but says what came before; whole at once."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        header = {"audit": "mas", "namespace": self._namespace, "after": [after.index, after.hash], "v": 1}
        new = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(header) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def _rotate(self, place: Place) -> None:
        there = {*self._numbers()}
        free = next(number for number in count(1) if number >= self._backups or number not in there)
        for number in range(free - 1, 0, -1):
            self.numbered(number).replace(self.numbered(number + 1))
        self.path.replace(self.numbered(1))
        self._begin(place)

    def _write(self, lines: list[bytes]) -> None:
        with self.path.open("ab") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())


_HEADER = 300
"""A file that is smaller holds no entry yet."""


def _place(line: dict[str, Any], before: Place | None) -> Any:
    if "e" in line:
        return Place(int(line["e"]["i"]), str(line["h"]))
    if "fork" in line:
        return Place(*line["fork"])
    if "audit" in line:
        return Place(*line["after"])
    return before


def _line(raw: bytes) -> dict[str, Any] | None:
    try:
        line = orjson.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    end = file.seek(0, os.SEEK_END)
    rest = b""
    while end:
        first = max(end - _BACK, 0)
        file.seek(first)
        rest = file.read(end - first) + rest
        end = first
        head, *lines = rest.split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = head
    if rest:
        yield rest
