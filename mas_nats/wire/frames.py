"""Streamed replies on the wire: chunks, and the header that identifies a frame.

A frame holds chunks: text, or JSON objects. Neighbouring texts are one text, so how a writer cut its text
does not matter. A *unit* is a character of text or one object; units say how much of a stream a frame holds,
however it was cut into frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Chunk = str | dict[str, Any]
"""A piece of a streamed reply: text, or a JSON object."""

WHOLE = "$whole"
"""A member, true, of an object that does not wait for those that follow it.

Data-loss prevention takes texts at the same place of one object after the other for one text that came in
parts, and the last of them may wait. With it none waits; a secret that began in such an object is redacted
from the next one on, or ends the stream there.
"""

FRAME_BYTES = 4096
"""Bytes of chunks that a frame holds; a single larger object makes a frame of its own (DESIGN 5)."""
WINDOW_FRAMES = 64
"""Frames that may be on their way to a reader that has not read them."""
WINDOW_BYTES = 256 << 10
"""Bytes of chunks that may be on their way to a reader, or one frame where that is larger."""

_MARK = re.compile(r"([0-9a-f]{16})\.(\d{1,9})\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class FrameMark:
    """What a worker writes on a frame.

    ``run`` names one course of a stream: frames of two never belong together. ``mac`` commits to what the
    producer has sent up to and with this frame, for workers only.
    """

    run: str
    units: int
    mac: str

    def __str__(self) -> str:
        return f"{self.run}.{self.units}.{self.mac}"

    @classmethod
    def read(cls, value: str) -> FrameMark | None:
        """Read the header; None for what is no such."""
        found = _MARK.fullmatch(value)
        return cls(found[1], int(found[2]), found[3]) if found else None


def joined(chunks: Sequence[Chunk]) -> list[Chunk]:
    """``chunks`` with neighbouring texts made one, and without empty ones."""
    out: list[Chunk] = []
    for is_text, neighbours in groupby(chunks, lambda chunk: isinstance(chunk, str)):
        if is_text:
            text = "".join(map(str, neighbours))  # at once: added one by one, a megabyte takes seconds
            out += [text] if text else []
        else:
            out += neighbours
    return out


def units(chunks: Sequence[Chunk]) -> int:
    """How much ``chunks`` hold."""
    return sum(len(chunk) if isinstance(chunk, str) else 1 for chunk in chunks)


def split(chunks: Sequence[Chunk], count: int) -> tuple[list[Chunk], list[Chunk]]:
    """The first ``count`` units of ``chunks``, and the rest."""
    first: list[Chunk] = []
    for position, chunk in enumerate(chunks):
        size = len(chunk) if isinstance(chunk, str) else 1
        if count >= size:
            first.append(chunk)
            count -= size
            continue
        rest = list(chunks[position:])
        if count and isinstance(chunk, str):
            first.append(chunk[:count])
            rest[0] = chunk[count:]
        return first, rest
    return first, []
