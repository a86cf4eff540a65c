"""What is wrong with settings, for the person who wrote them: where, what, and what was probably meant.

Texts are not repeated, since they may be secrets, but for one that stands where only a few words may, or an
id. What is named are fields, what kind of thing was found, and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Place = tuple[str | int, ...]
Named = Callable[[Place], str]
"""Where a field was set, as a person finds it: a line, a variable."""

_CHOICES = frozenset({"literal_error", "enum", "union_tag_invalid"})
_QUOTED = re.compile(r"'([^']*)'")
_PLAIN = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_type": "text",
    "invalid_key": "text, as every key",
}
"""What pydantic calls by the names of Python."""
_LONGEST = 40
_LARGE = 10**15  # Python refuses to write out integers of more than 4300 digits
_SELF_EVIDENT = frozenset({"missing", "extra_forbidden", "value_error", "union_tag_not_found"})
"""Kinds of mistakes that say what was found, or found nothing."""


def mistakes(error: ValidationError, model: type[BaseModel], named: Named = lambda _: "") -> list[str]:
    """One line for each mistake; ``model`` is what was validated."""
    lines = []
    for each in error.errors(include_url=False):
        place, text = each["loc"], str(each["msg"])
        if each["type"] in _PLAIN:
            text = f"must be {_PLAIN[each['type']]}"
        elif each["type"] == "extra_forbidden":
            text = _unknown(str(place[-1]), sorted(known_keys(model, place[:-1])))
        elif each["type"] in _CHOICES:
            choices = _QUOTED.findall(str(each.get("ctx", {}).get("expected_tags") or text))
            text += guess(_said(each), choices)
        if each["type"] not in _SELF_EVIDENT:
            text += f" (found {_found(each)})"
        where = named(place)
        lines.append(f"{where + ', ' if where else ''}{'.'.join(map(str, place)) or 'the whole'}: {text}")
    return lines


def known_keys(model: type[BaseModel], place: Sequence[str | int]) -> set[str]:
    """The keys that may stand in the mapping at ``place``; empty where it is free."""
    found: list[Any] = [model]
    for part in place:
        found = [after for kind in found for after in _inside(kind, part)]
    return {name for kind in found if _is_model(kind) for name in _keys(kind)}


def _inside(kind: Any, part: str | int) -> Iterator[Any]:
    """The types that a part of a place leads to."""
    if _is_model(kind):
        if (field := _keys(kind).get(str(part))) is not None:
            yield from _plain(field.annotation)
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


def _keys(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the keys under which they are written."""
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _has_tag(kind: type[BaseModel], part: str | int) -> bool:
    field = kind.model_fields.get("type")
    return (
        field is not None and get_origin(field.annotation) is Literal and part in get_args(field.annotation)
    )


def _unknown(key: str, known: Sequence[str]) -> str:
    return f"there is no such key{guess(key, known)}; known are {', '.join(known)}"


def guess(said: str, choices: Sequence[str]) -> str:
    """``; did you mean 'x'?`` where one of ``choices`` is near to what was said; else empty."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(said.lower(), by_lower, 1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _said(each: Any) -> str:
    """What stood there instead of one of a few words; only to find the word that was meant."""
    said = _stood(each)
    return said if isinstance(said, str) else ""


def _stood(each: Any) -> Any:
    """What stands where the mistake is; of a union with a tag, what stands as the tag."""
    stood = each.get("input")
    if each["type"] == "union_tag_invalid" and isinstance(stood, Mapping):
        return stood.get(str(each["ctx"]["discriminator"]).strip("'"))
    return stood


def _found(each: Any) -> str:
    """What stands there: what kind of thing, and which where it can be no secret."""
    value = _stood(each)
    if each["type"] in _CHOICES and isinstance(value, str):
        return repr(value[:_LONGEST])
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else _number(value)
    for kind, name in ((str, "text"), (Mapping, "a mapping"), (Sequence, "a list")):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


def _number(value: int) -> str:
    return str(value) if abs(value) < _LARGE else "a very large number"
