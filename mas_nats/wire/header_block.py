"""The headers of a message as NATS carries them: written and read at once, instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIRST_LINE = "NATS/1.0\r\n"
_BEGIN, _END = _FIRST_LINE.encode(), b"\r\n\r\n"
_LONGEST_LIST = 64
"""Names in a list of which the block's form is remembered."""


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
    if not (block.startswith(_BEGIN) and block.endswith(_END)):
        return None
    try:
        lines = block[len(_BEGIN) : -len(_END)].decode().split("\r\n")
    except UnicodeDecodeError:
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if not (colon and _known(name)) or value != value.strip():
            return None
        fields[name] = value
    return fields


@lru_cache(maxsize=256)
def _known(name: str) -> bool:
    """Whether ``name`` is a name of a header."""
    return _NAME.fullmatch(name) is not None
