"""The headers of a message as NATS carries them, all checked at once instead of one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIRST_LINE = "NATS/1.0\r\n"


def header_block(fields: Mapping[str, str]) -> bytes | None:
    """The block of these headers; None where one of them is not a name and a single line."""
    lines = [f"{_known(name)}{value}\r\n" for name, value in fields.items()]
    block = _FIRST_LINE + "".join(lines) + "\r\n"
    ends = len(lines) + 2
    if block.count("\r") != ends or block.count("\n") != ends or not all(map(_known, fields)):
        return None
    return block.encode()


@lru_cache(maxsize=256)
def _known(name: str) -> str:
    """``name`` as it begins a line; empty where it is no name of a header."""
    return f"{name}: " if _NAME.fullmatch(name) else ""
