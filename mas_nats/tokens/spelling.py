"""How a token is spelled within a message: in the letters a to p, two for each byte.

Data-loss prevention has to find tokens in messages: whoever sends one gives away a right. The token that a
sidecar sends with a call gives none to anybody but the addressee, and must arrive as it was signed. In these
letters no built-in rule takes it, or a part of it, for a secret or a number.
"""

from __future__ import annotations

import re

_LETTERS = bytes.maketrans(b"0123456789abcdef", b"abcdefghijklmnop")
_DIGITS = bytes.maketrans(b"abcdefghijklmnop", b"0123456789abcdef")
_SPELLED = re.compile(r"(?:[a-p]{2})+")


def spelled(token: str) -> str:
    """``token`` as it travels."""
    return token.encode().hex().encode().translate(_LETTERS).decode()


def unspelled(text: str) -> str:
    """And back.

    Raises:
        ValueError: it is not spelled so.

    """
    if not _SPELLED.fullmatch(text):
        raise ValueError("not spelled as a token in a message is")
    return bytes.fromhex(text.encode().translate(_DIGITS).decode()).decode("ascii")
