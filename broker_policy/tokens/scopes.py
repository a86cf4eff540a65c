"""Scopes: what a token says is what every application on its way is registered for (ADR 33)."""

from __future__ import annotations

from collections.abc import Collection, Iterable


class NoScope(Exception):
    """A token may not say what it would have to. Its text names scopes, which are policy and no content."""


def granted(
    offered: Collection[str], registered: Iterable[Collection[str]], wanted: Collection[str] = ()
) -> tuple[str, ...]:
    """What a token for an application that has the scopes ``offered`` says.

    ``registered``: the scopes of each that has a say; ``wanted``: those that are asked for, where not all.

    Raises:
        NoScope: more is asked for than that, or nothing is left though the application has scopes.

    """
    allowed = set(offered)
    for each in registered:
        allowed &= set(each)
    if beyond := sorted(set(wanted) - allowed):
        raise NoScope(f"these scopes are not given here: {' '.join(beyond)}")
    if offered and not allowed:
        raise NoScope(f"who calls it needs one of the scopes {' '.join(sorted(offered))}")
    return tuple(sorted(set(wanted) or allowed))
