"""JSON that every program reads in the same way.

Parsers differ over duplicate names, numbers that do not fit, ``NaN`` and halves of surrogate pairs; what one
of them checks is then not what another one runs. All of that is refused here (RFC 8259, section 4, 6 and 8).
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64
_MAX_INTEGER = 2**63


class NotStrict(ValueError):
    """The text is no JSON, or not everybody would read it in the same way. Holds nothing of its content."""


def parse(raw: bytes | str) -> Any:
    """Read JSON.

    Raises:
        NotStrict: it cannot be taken; the text says why.

    """
    try:
        text = raw if isinstance(raw, str) else raw.decode()
    except UnicodeDecodeError:
        raise NotStrict("it is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise NotStrict("it begins with a byte order mark")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except RecursionError:
        raise NotStrict(f"it is nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise NotStrict(f"it is no JSON (at character {error.pos})") from None
    _check(found)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotStrict("an object has the same name twice")
    return found


def _constant(_: str) -> Any:
    raise NotStrict("it has a number that JSON does not know")


def _integer(text: str) -> int:
    if len(text) > 20 or not -_MAX_INTEGER <= (number := int(text)) < _MAX_INTEGER:
        raise NotStrict("it has an integer of more than 64 bits")
    return number


def _number(text: str) -> float:
    if len(text) > 64 or not math.isfinite(number := float(text)):
        raise NotStrict("it has a number that cannot be held exactly enough")
    return number


def _check(document: Any) -> None:
    """Refuse what cannot be written again: too deep, or text that is no Unicode."""
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise NotStrict(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                _check_text(name)
                waiting.append((inner, depth + 1))
        elif isinstance(value, list):
            waiting.extend((inner, depth + 1) for inner in value)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotStrict("a text in it is no Unicode") from None
