"""What has gone out of a stream and is still searched with what follows.

An object that says that it is whole does not wait. What its texts end with may be the beginning of a secret
all the same, so it is remembered, and searched again with the text at the same place of a later object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from mas_nats.wire.frames import Chunk

Path = tuple[str, ...]

MARK = "$passed"
"""The member of what comes first in what is held back, where something is remembered."""
MAX_PASSED = 32_768
"""Bytes of JSON remembered of one stream, of its newest objects first: half of what may be held back."""
_SAME = 256
"""Characters remembered of a text that was the same in every object."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The end of what was said at one place. ``same``: the text that every object had there; else None."""

    text: str = ""
    same: str | None = None

    def constant(self, parts: Sequence[str]) -> bool:
        """Whether ``parts`` are what was always said there, which makes no text that goes on."""
        texts = set(parts) | ({self.same} if self.text else set())
        return len(texts) == 1 and None not in texts

    def then(self, parts: Sequence[str]) -> Passed:
        """What was said when ``parts`` have gone out, too."""
        text = self.text + "".join(parts)
        if self.constant(parts):
            return Passed(text[-max(_SAME, len(parts[0])) :], parts[0])
        return Passed(text)


def parted(held: Sequence[Chunk]) -> tuple[dict[Path, Passed], list[Chunk]]:
    """What has gone out, by its place, and what waits."""
    if not held or isinstance(held[0], str) or MARK not in held[0]:
        return {}, list(held)
    remembered = {tuple(path): Passed(text, same) for path, text, same in held[0][MARK]}
    return remembered, list(held[1:])


def together(passed: Mapping[Path, Passed], waiting: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """Both, to be held: as much of ``passed`` as there is room for, from its first on."""
    entries, size = [], 0
    for path, each in passed.items():
        entry = (path, each.text, each.same)
        length = len(orjson.dumps(entry))
        if size + length <= MAX_PASSED:
            size += length
            entries.append([list(path), each.text, each.same])
    first = waiting[0] if waiting else ""
    if entries or (isinstance(first, dict) and MARK in first):  # a producer's own object of that name is none
        return ({MARK: entries}, *waiting)
    return tuple(waiting)
