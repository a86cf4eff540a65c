"""Lists of names, as programs give them."""

from __future__ import annotations

from collections.abc import Iterable


def names(what: str, given: Iterable[str]) -> tuple[str, ...]:
    """The names in ``given``, which ``what`` calls in the error.

    Raises:
        TypeError: it is one name, which would be taken for its letters, or not all of it are names.

    """
    if isinstance(given, str):
        raise TypeError(f"{what} must be a list of names, not {given!r}")
    found = tuple(given)
    for each in found:
        if not isinstance(each, str):
            raise TypeError(f"{what} must be a list of names, and {each!r} is none")
    return found
