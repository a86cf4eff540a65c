"""Message ids and the correlation token both sides derive from them."""

from __future__ import annotations

import hashlib
import os
import secrets

_ID_BYTES, _AT_ONCE = 16, 64
_drawn: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)  # what the parent will use is not for its child


def new_message_id() -> str:
    """A fresh message id: 128 random bits, in hexadecimal."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:  # many at once: each question to the system costs as much as composing a message
            bits = secrets.token_hex(_ID_BYTES * _AT_ONCE)
            _drawn.extend(bits[at : at + 2 * _ID_BYTES] for at in range(0, len(bits), 2 * _ID_BYTES))


def correlation(message_id: str, namespace: str = "") -> str:
    """The subject token that ties a reply to the request ``message_id``, to an agent of ``namespace``.

    ``namespace`` is empty for the own one. An id holds no blank, so one used here and there makes two tokens.

    A digest, since a caller may choose any id while a subject token may not hold dots or wildcards.
    """
    asked = f"{namespace} {message_id}" if namespace else message_id
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
