"""What a Redis that does not do its work says of that, for a line of the log or of a command."""

from __future__ import annotations

from redis.exceptions import RedisError

_LONGEST = 200


def complaint(error: Exception) -> str:
    """The kind of ``error``, and in Redis's own words what is wrong: they tell of itself, not of entries."""
    kind = type(error).__name__
    text = " ".join(str(error).split())[:_LONGEST] if isinstance(error, RedisError) else ""
    return f"{kind}: {text}" if text else kind
