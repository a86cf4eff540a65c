"""What is shown to people: text that somebody else chose, made fit for one line, and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(text: str, most: int) -> str:
    """At most ``most`` characters of ``text``, in one line; what is no printable ASCII becomes ``?``."""
    if len(text) <= most and text.isascii() and text.isprintable() and " " not in text:
        return text
    return _UNPRINTABLE.sub("?", " ".join(text[: 4 * most].split()))[:most]


def told(milliseconds: int) -> str:
    """Unix milliseconds as a time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
