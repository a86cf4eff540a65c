"""The headers of a message as NATS carries them: written and read at once, instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIRST_LINE = "NATS/1.0\r\n"
_LAST_LINES = "\r\n\r\n"
_LONGEST_LIST = 64
"""Names in a list of which the block's form is remembered."""
_LONGEST_AT_ONCE = 4096
"""Characters of a block that is read at once, and whose names are remembered."""


def header_block(fields: Mapping[str, str]) -> bytes | None:
    """The block of these headers; None where one of them is not a name and a single line."""
    names = tuple(fields)
    form = _form(names) if len(names) <= _LONGEST_LIST else None
    if form is None:
        return None
    block = form % tuple(fields.values())
    ends = len(names) + 2
    if block.count("\r") != ends or block.count("\n") != ends:
        return None
    return block.encode()


@lru_cache(maxsize=256)
def _form(names: tuple[str, ...]) -> str | None:
    """The block of headers with these names, a place for each value; None where one is no name."""
    if not all(map(_known, names)):
        return None
    lines = "".join(f"{name.replace('%', '%%')}: %s\r\n" for name in names)
    return f"{_FIRST_LINE}{lines}\r\n"


def header_fields(block: bytes) -> dict[str, str] | None:
    """The headers in ``block``; None where it is written in another way, or holds what is none."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return None
    if len(text) > _LONGEST_AT_ONCE:
        return _fields(text)
    # Where each value is one word: what names and values make again is what was there, every space included.
    words = text.split()
    values = tuple(words[2::2])
    found = _last_names.get(len(words))
    if found is None or found.form % values != text:
        found = _names(tuple(words[1::2]))
        if found is None or len(found.names) != len(values) or found.form % values != text:
            return _fields(text)
        _last_names[len(words)] = found
    return dict(zip(found.names, values, strict=True))


class _Names(NamedTuple):
    names: tuple[str, ...]
    form: str


_last_names: dict[int, _Names] = {}
"""By the number of words, those of the last block: most have the names of one before."""


@lru_cache(maxsize=256)
def _names(words: tuple[str, ...]) -> _Names | None:
    """The names that these are, each with its colon; None where there is none, or one that is no name."""
    names = tuple(word.removesuffix(":") for word in words)
    form = _form(names) if names else None
    return None if form is None else _Names(names, form)


def _fields(text: str) -> dict[str, str] | None:
    """The headers in the block ``text``, read one by one."""
    if not (text.startswith(_FIRST_LINE) and text.endswith(_LAST_LINES)):
        return None
    fields: dict[str, str] = {}
    for line in text[len(_FIRST_LINE) : -len(_LAST_LINES)].split("\r\n"):
        name, colon, value = line.partition(": ")
        if not (colon and _known(name)) or value != value.strip():
            return None
        fields[name] = value
    return fields


@lru_cache(maxsize=256)
def _known(name: str) -> bool:
    """Whether ``name`` is a name of a header."""
    return _NAME.fullmatch(name) is not None
