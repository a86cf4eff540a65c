"""Error texts without the payload they came from.

A handler's exception often quotes what it was given. What reaches a log, an audit entry or a dead letter's
header must not (DESIGN 1, promise 7), so whatever the text shares with the payload is cut out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from mas_nats.handlers import describe

CUT = "[...]"
MAX_TEXT = 600
"""Characters of an error text that are reported. Fewer are kept: what the end cuts in two is not."""
_SHORTEST_LEAF = 4
_WINDOW = 6
"""So many consecutive characters shared with the payload are a quotation."""
_NUMBER = re.compile(r"\d(?:[\d .,/-]*\d)?")


def scrub(error: BaseException, payload: Mapping[str, Any]) -> str:
    """The text of ``error``, at most ``MAX_TEXT`` characters, without anything it quotes from ``payload``."""
    try:
        text = describe(error) if isinstance(error, ValidationError) else str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may do anything
        return ""
    text = _plain(text[: MAX_TEXT + 100])
    leaves = sorted(set(_leaves(payload)), key=len, reverse=True)
    for leaf in leaves:
        if _SHORTEST_LEAF <= len(leaf) <= len(text) + _SHORTEST_LEAF:
            for form in {_plain(leaf), _plain(repr(leaf)[1:-1]), _plain(_escaped(leaf))}:
                if len(form) >= _SHORTEST_LEAF:
                    text = text.replace(form, CUT)
    text = _cut_numbers(text, leaves)
    return _cut_quotations(text, [leaf for leaf in leaves if len(leaf) >= _WINDOW])[:MAX_TEXT]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _leaves(payload: Any) -> Iterator[str]:
    left = [payload]  # not by recursion: whoever sends it chooses how deep it is
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for key in value:
                if sum(character.isdigit() for character in key) >= _SHORTEST_LEAF:
                    yield key
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)


def _escaped(leaf: str) -> str:
    try:
        return orjson.dumps(leaf).decode()[1:-1]
    except TypeError:
        return leaf


def _cut_numbers(text: str, leaves: list[str]) -> str:
    """A number of four digits or more that the payload holds too, however it is written there."""
    digits = [re.sub(r"\D", "", leaf) for leaf in leaves]

    def replaced(match: re.Match[str]) -> str:
        number = re.sub(r"\D", "", match[0])
        if len(number) >= _SHORTEST_LEAF and any(number in each for each in digits):
            return CUT
        return match[0]

    return _NUMBER.sub(replaced, text)


def _cut_quotations(text: str, leaves: list[str]) -> str:
    """Every stretch of ``_WINDOW`` characters or more that also stands in the payload."""
    payload = "\n".join(map(_plain, leaves)).casefold()
    folded = text.casefold()
    if not payload or len(folded) != len(text):
        return text if not payload else CUT
    quoted = [False] * len(text)
    for start in range(len(text) - _WINDOW + 1):
        if folded[start : start + _WINDOW] in payload:
            quoted[start : start + _WINDOW] = [True] * _WINDOW
    out: list[str] = []
    for position, character in enumerate(text):
        if not quoted[position]:
            out.append(character)
        elif position == 0 or not quoted[position - 1]:
            out.append(CUT)
    return "".join(out)
