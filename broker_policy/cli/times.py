"""Times and durations as people write them on a command line."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

from mas_nats.errors import ConfigurationError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def duration(text: str) -> timedelta:
    """``90``, ``90s``, ``10m``, ``1h30m``, ``2d`` as a duration; a bare number is seconds.

    Raises:
        ConfigurationError: it is none.

    """
    bare = re.fullmatch(r"\d+(?:\.\d+)?", text) is not None
    parts = [(text, "s")] if bare else _PART.findall(text)
    if not bare and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise ConfigurationError(f"{text!r} is not a duration: write 90s, 10m, 1h30m or 2d")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise ConfigurationError(f"{text!r} is longer than anything that can be waited for") from None


def moment(text: str) -> datetime:
    """An ISO 8601 time, such as ``2026-12-24T18:00:00+01:00``; without a zone it is local time.

    Raises:
        ConfigurationError: it is none.

    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{text!r} is not a time: write 2026-12-24T18:00:00+01:00") from None


def when(text: str) -> int:
    """A time (``moment``) or how long ago (``2h``, ``90d``), as unix milliseconds.

    Raises:
        ConfigurationError: it is neither.

    """
    if _PART.match(text):
        return int((time.time() - duration(text).total_seconds()) * 1000)
    try:
        return int(moment(text).timestamp() * 1000)
    except ConfigurationError:
        raise ConfigurationError(
            f"{text!r} is not a time: write 2026-12-24T18:00:00+01:00, or how long ago: 90s, 15m, 2h, 7d"
        ) from None
