"""The headers of a message as NATS carries them: written and read at once, instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIRST_LINE = "NATS/1.0\r\n"
_BEGIN, _END = _FIRST_LINE.encode(), b"\r\n\r\n"


def header_block(fields: Mapping[str, str]) -> bytes | None:
    """The block of these headers; None where one of them is not a name and a single line."""
    lines = [f"{_known(name)}{value}\r\n" for name, value in fields.items()]
    block = _FIRST_LINE + "".join(lines) + "\r\n"
    ends = len(lines) + 2
    if block.count("\r") != ends or block.count("\n") != ends or not all(map(_known, fields)):
        return None
    return block.encode()


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
def _known(name: str) -> str:
    """``name`` as it begins a line; empty where it is no name of a header."""
    return f"{name}: " if _NAME.fullmatch(name) else ""
