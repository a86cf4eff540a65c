"""The hash chain: ``hash = SHA-256(previous hash || canonical(entry))`` (DESIGN 7).

Canonical is RFC 8785. Entries hold strings, lists and integers below 2^53 under ASCII keys, and for these
orjson with sorted keys writes the same bytes (``tests/unit/test_audit_canonical.py`` proves it against the
``rfc8785`` package), many times faster.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

HASH_BYTES = 32
MAX_INT = (1 << 53) - 1
"""The largest integer of an entry: beyond it RFC 8785 numbers are no longer exact."""
_CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def canonical(entry: dict[str, Any]) -> bytes:
    """The bytes of ``entry`` that are hashed and stored.

    Raises:
        TypeError: a value is of a kind that entries do not hold.

    """
    return orjson.dumps(entry, option=_CANONICAL)


def genesis(namespace: str) -> bytes:
    """What stands for the previous hash of the first entry."""
    return hashlib.sha256(b"mas audit chain v1\0" + namespace.encode()).digest()


def link(previous: bytes, body: bytes) -> bytes:
    """The hash of the entry whose canonical form is ``body``, after ``previous``."""
    return hashlib.sha256(previous + body).digest()
