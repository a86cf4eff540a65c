"""A screen with one rule and a window, as data-loss prevention will have many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from broker_policy.screen import Screened
from mas_nats.wire.frames import Chunk, joined

REDACTED = "[redacted]"
SECRET = re.compile(r"\d{4}-\d{4}")
WIDTH = 9
"""Characters of whatever ``SECRET`` finds."""


@dataclass(frozen=True)
class WindowScreen:
    """Redacts ``SECRET`` in all text of a stream, also across objects; holds back ``window`` characters."""

    window: int = WIDTH - 1

    def __call__(self, held: Sequence[Chunk], new: Sequence[Chunk], *, final: bool) -> Screened:
        chunks = joined([*held, *new])
        text = "".join(chunk for chunk in chunks if isinstance(chunk, str))
        found = [match.span() for match in SECRET.finditer(text)]
        cut = len(text) if final else max(0, len(text) - self.window)
        cut = max([cut, *(end for start, end in found if start < cut < end)])
        out: list[Chunk] = []
        kept: list[Chunk] = []
        place = 0
        for chunk in chunks:
            if not isinstance(chunk, str):
                (out if place < cut or (place == cut and not kept) else kept).append(chunk)
                continue
            here = max(0, min(len(chunk), cut - place))
            if here:
                out.append(_redacted(text, place, place + here, found))
            if here < len(chunk):
                kept.append(chunk[here:])
            place += len(chunk)
        return Screened(tuple(joined(out)), tuple(joined(kept)))


def _redacted(text: str, first: int, last: int, found: list[tuple[int, int]]) -> str:
    out = ""
    place = first
    for start, end in found:
        if end <= first or start >= last:
            continue
        out += text[place : max(place, start)]
        if start >= first:
            out += REDACTED
        place = max(place, min(end, last))
    return out + text[place:last]
