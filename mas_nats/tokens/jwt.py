"""JSON Web Tokens of one form: ``EdDSA`` over Ed25519, one type, a key that is named.

Sources: RFC 7515 (compact serialization), RFC 8037 (EdDSA, OKP keys), RFC 8725 (what goes wrong with others:
so nothing is chosen by the token but which of the known keys it is). No error holds the token.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mas_nats.tokens.claims import LIFETIME, MAX_BYTES, TOLERANCE, Claims, NotClaims
from mas_nats.wire.base64url import base64url

TYPE = "mas+jwt"
_ALGORITHM = "EdDSA"
_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_KEY_ID = re.compile(r"[0-9a-f]{8}")

PublicKeys = Mapping[str, Ed25519PublicKey]
"""Keys by their ids."""


class InvalidToken(ValueError):
    """A token that is not taken; ``rule`` names why."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


class UnknownKey(InvalidToken):
    """It names a key that is not known: perhaps a newer one."""


def sign(claims: Claims, key_id: str, key: Ed25519PrivateKey) -> str:
    """The token."""
    head = orjson.dumps({"alg": _ALGORITHM, "typ": TYPE, "kid": key_id})
    signed = f"{base64url(head)}.{base64url(claims.encode())}"
    return f"{signed}.{base64url(key.sign(signed.encode()))}"


def read(token: str, keys: PublicKeys, *, now: float) -> Claims:
    """What ``token`` says, at ``now`` (unix seconds).

    Raises:
        UnknownKey: its key is not among ``keys``.
        InvalidToken: it is forged, altered, too old or no token of this system.

    """
    parts = _PARTS.fullmatch(token) if len(token) <= MAX_BYTES else None
    if parts is None:
        raise InvalidToken("malformed", "it is no token in compact form")
    try:
        head = orjson.loads(_decode(parts[1]))
        signature, body = _decode(parts[3]), _decode(parts[2])
    except ValueError:
        raise InvalidToken("malformed", "it is no token in compact form") from None
    if not isinstance(head, dict) or head.keys() != {"alg", "typ", "kid"}:
        raise InvalidToken("header", "its header is not that of a token of this system")
    if head["alg"] != _ALGORITHM or head["typ"] != TYPE:
        raise InvalidToken("algorithm", "its algorithm or type is not that of tokens of this system")
    if not isinstance(head["kid"], str) or (key := keys.get(head["kid"])) is None:
        raise UnknownKey("unknown_key", "it is signed with a key that this system does not have")
    try:
        key.verify(signature, f"{parts[1]}.{parts[2]}".encode())
    except InvalidSignature:
        raise InvalidToken("signature", "its signature is not that of this system") from None
    try:
        claims = Claims.decode(body)
    except NotClaims as error:
        raise InvalidToken("claims", str(error)) from None
    if now > claims.expires + TOLERANCE:
        raise InvalidToken("expired", "it has expired")
    if claims.issued > now + TOLERANCE or claims.expires - claims.issued > LIFETIME:
        raise InvalidToken("not_yet", "it begins later, or lives longer, than tokens do")
    return claims


def jwks(keys: Mapping[str, Ed25519PublicKey]) -> dict[str, Any]:
    """The keys as a JSON Web Key Set (RFC 7517, RFC 8037)."""
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "use": "sig",
                "alg": _ALGORITHM,
                "kid": key_id,
                "x": base64url(key.public_bytes_raw()),
            }
            for key_id, key in keys.items()
        ]
    }


def keys_of(document: Any) -> dict[str, Ed25519PublicKey]:
    """The keys in a set; those of other kinds are passed over.

    Raises:
        ValueError: it is no key set.

    """
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("this is no JSON Web Key Set")  # noqa: TRY004 - data from outside
    return dict(_keys(document["keys"]))


def _keys(said: Iterable[Any]) -> Iterable[tuple[str, Ed25519PublicKey]]:
    for each in said:
        if not isinstance(each, dict) or each.get("kty") != "OKP" or each.get("crv") != "Ed25519":
            continue
        if _KEY_ID.fullmatch(str(each.get("kid"))):
            yield str(each["kid"]), Ed25519PublicKey.from_public_bytes(_decode(str(each["x"])))


def _decode(text: str) -> bytes:
    """Base64url in its one spelling."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if base64url(raw) != text:
        raise ValueError("not the one spelling")
    return raw
