"""What is wrong with settings, for the person who wrote them: where, what, and what was probably meant.

Values are never repeated: they may be secrets. What is named are fields, and values that would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]
Named = Callable[[Place], str]
"""Where a field was set, as a person finds it: a line, a variable."""

_CHOICES = frozenset({"literal_error", "enum", "union_tag_invalid"})
_QUOTED = re.compile(r"'([^']*)'")


def mistakes(error: ValidationError, model: type[BaseModel], named: Named = lambda _: "") -> list[str]:
    """One line for each mistake; ``model`` is what was validated."""
    lines = []
    for each in error.errors(include_url=False):
        place, text = each["loc"], str(each["msg"])
        if each["type"] == "extra_forbidden":
            text = _unknown(str(place[-1]), sorted(known_keys(model, place[:-1])))
        elif each["type"] in _CHOICES:
            choices = _QUOTED.findall(str(each.get("ctx", {}).get("expected_tags") or text))
            text += _guess(_said(each), choices)
        where = named(place)
        lines.append(f"{where + ', ' if where else ''}{'.'.join(map(str, place)) or 'the whole'}: {text}")
    return lines


def known_keys(model: type[BaseModel], place: Sequence[str | int]) -> set[str]:
    """The keys that may stand in the mapping at ``place``; empty where it is free."""
    found: list[Any] = [model]
    for part in place:
        found = [after for kind in found for after in _inside(kind, part)]
    return {name for kind in found if _is_model(kind) for name in kind.model_fields}


def _inside(kind: Any, part: str | int) -> Iterator[Any]:
    """The types that a part of a place leads to."""
    if _is_model(kind):
        if part in kind.model_fields:
            yield from _plain(kind.model_fields[part].annotation)
        elif _has_tag(kind, part):  # the tag of a union is a part of its place
            yield kind
    elif get_origin(kind) in (tuple, list) and isinstance(part, int):
        yield from _plain(get_args(kind)[0])
    elif get_origin(kind) is dict:
        yield from _plain(get_args(kind)[1])


def _plain(kind: Any) -> Iterator[Any]:
    """The alternatives of a type."""
    if get_origin(kind) is Annotated:
        yield from _plain(get_args(kind)[0])
    elif get_origin(kind) in (tuple, list, dict) or not get_args(kind):
        yield kind
    else:
        for each in get_args(kind):
            yield from _plain(each)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _has_tag(kind: type[BaseModel], part: str | int) -> bool:
    field = kind.model_fields.get("type")
    return (
        field is not None and get_origin(field.annotation) is Literal and part in get_args(field.annotation)
    )


def _unknown(key: str, known: Sequence[str]) -> str:
    return f"there is no such key{_guess(key, known)}; known are {', '.join(known)}"


def _guess(said: str, choices: Sequence[str]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(said.lower(), by_lower, 1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _said(each: Any) -> str:
    """What stood there instead of one of a few words; only to find the word that was meant."""
    if each["type"] == "union_tag_invalid":
        return str(each["ctx"].get("tag", ""))
    return str(each.get("input", ""))
