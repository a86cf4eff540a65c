"""Text that somebody else chose, made fit for one line of a log, a header or a record."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(text: str, most: int) -> str:
    """At most ``most`` characters of ``text``, in one line; what is no printable ASCII becomes ``?``."""
    return _UNPRINTABLE.sub("?", " ".join(text[: 4 * most].split()))[:most]
