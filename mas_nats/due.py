"""When a delayed message shall be delivered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from mas_nats.errors import InvalidMessage
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict


@dataclass(frozen=True, slots=True)
class Due:
    """A time as it travels: in ``Mas-Delay`` from the arrival of the call, or in ``Mas-Due`` by itself."""

    header: str
    milliseconds: int


def due(delay: float | timedelta | None, at: datetime | None) -> Due | None:
    """The time that ``delay`` (seconds, or a timedelta) or ``at`` (with its time zone) names; None: at once.

    Raises:
        InvalidMessage: both are given, ``delay`` is negative or no number, ``at`` has no time zone.

    """
    if delay is None and at is None:
        return None
    if delay is not None and at is not None:
        raise _invalid("delay and at are both given", "Give one of them")
    if delay is not None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            kind = type(delay).__name__
            raise _invalid(f"a delay is a number of seconds or a timedelta, not a {kind}", "Use delay=60")
        if not (math.isfinite(seconds) and 0 <= seconds < _LARGEST):
            raise _invalid(
                f"a delay of {seconds:g} s cannot be waited for", "Use a delay of 0 or more seconds"
            )
        return Due(headers.DELAY, round(seconds * 1000))
    if not isinstance(at, datetime):
        raise _invalid(f"at is a datetime, not a {type(at).__name__}", "Use datetime.now(UTC) + ...")
    if at.utcoffset() is None:
        raise _invalid(
            "at has no time zone, so nobody can say which moment it is",
            "Use datetime(..., tzinfo=UTC), or .astimezone() where local time is meant",
        )
    return Due(headers.DUE, max(1, round(at.timestamp() * 1000)))


_LARGEST = 1e11
"""Seconds; what is longer than the policy allows is refused by the policy service, which knows the limit."""


def _invalid(reason: str, fix: str) -> InvalidMessage:
    return InvalidMessage(Verdict(Decision.INVALID, ok=False, step="sdk", rule="due", reason=reason, fix=fix))
