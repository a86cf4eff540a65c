"""Base64url without padding (RFC 4648, section 5), as JWTs, commitments and dedup ids have it."""

from __future__ import annotations

from binascii import b2a_base64

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def base64url(raw: bytes) -> str:
    """``raw`` in base64url: by two calls, where the standard library's takes five."""
    return b2a_base64(raw, newline=False).translate(_URL_SAFE, b"=").decode()
