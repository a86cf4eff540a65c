"""What a stream answers to who writes to it, where that is no plain yes (nats-server errors.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WRONG_LAST_SEQUENCE = (10071, 10164)
"""A lost compare-and-set, as a single and as a replicated stream report it (DESIGN 9)."""
_UNAVAILABLE = 503
_UNSETTLED = (
    10008,  # no leader at the moment
    10009,  # not the leader
    10158,  # this id is under way
    10163,  # this subject is under way
    10167,  # too many requests
    10176,  # a batch arrived in part
    10210,  # too many batches
)


def unsettled(error: Mapping[str, Any]) -> bool:
    """Whether an error leaves open if what was published is stored, or yet will be: it is to be repeated.

    A 503 without a code is from a leader that lost its office meanwhile; "closed" is the store of a server
    that stops, when others may have what it was to store.
    """
    code = error.get("err_code")
    lost_office = not code and error.get("code") == _UNAVAILABLE
    return code in _UNSETTLED or lost_office or "closed" in str(error.get("description"))
