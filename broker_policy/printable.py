"""What is shown to people: text that somebody else chose, made fit for a line or a terminal, and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(text: str, most: int) -> str:
    """At most ``most`` characters of ``text``, in one line; what is no printable ASCII becomes ``?``."""
    if len(text) <= most and text.isascii() and text.isprintable() and " " not in text:
        return text
    return _UNPRINTABLE.sub("?", " ".join(text[: 4 * most].split()))[:most]


def legible(text: str, *, keep: str = "\n\t") -> str:
    """All of ``text``, for a terminal: what that would obey, or what reverses a line, as JSON escapes it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def told(milliseconds: int) -> str:
    """Unix milliseconds as a time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
