"""Message ids and the correlation token both sides derive from them."""

from __future__ import annotations

import hashlib
import secrets


def new_message_id() -> str:
    """A fresh message id: 128 random bits, in hexadecimal."""
    return secrets.token_hex(16)


def correlation(message_id: str, namespace: str = "") -> str:
    """The subject token that ties a reply to the request ``message_id``, to an agent of ``namespace``.

    ``namespace`` is empty for the own one. An id holds no blank, so one used here and there makes two tokens.

    A digest, since a caller may choose any id while a subject token may not hold dots or wildcards.
    """
    asked = f"{namespace} {message_id}" if namespace else message_id
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
