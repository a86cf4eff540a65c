"""NATS nkeys: Ed25519 keys in the text form NATS uses.

Public: base32 of a prefix byte, 32 bytes of key and a CRC-16. Seed: the same with two prefix bytes.
Source: github.com/nats-io/nkeys (strkey.go, crc16.go).
"""

from __future__ import annotations

import base64
import binascii
import os
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_SEED = 18 << 3  # 'S'
_RAW_BYTES = 32


class Kind(IntEnum):
    """What a key is for; its first letter when encoded is that of the name."""

    ACCOUNT = 0
    NODE = 13 << 3  # a server
    OPERATOR = 14 << 3
    USER = 20 << 3


class KeyPair:
    """An nkey that can sign. Its ``repr`` shows the public key only."""

    __slots__ = ("_private", "_raw", "kind", "public")

    def __init__(self, kind: Kind, raw_seed: bytes) -> None:
        if len(raw_seed) != _RAW_BYTES:
            raise ValueError(f"an nkey seed has {_RAW_BYTES} bytes, this one {len(raw_seed)}")
        self.kind = kind
        self._raw = raw_seed
        self._private = Ed25519PrivateKey.from_private_bytes(raw_seed)
        self.public: str = _encode(bytes([kind]) + self._private.public_key().public_bytes_raw())

    @classmethod
    def create(cls, kind: Kind) -> KeyPair:
        """A new random key."""
        return cls(kind, os.urandom(_RAW_BYTES))

    @classmethod
    def from_seed(cls, seed: str) -> KeyPair:
        """Read a seed (``SO…``, ``SA…``, ``SU…``, ``SN…``).

        Raises:
            ValueError: it is no seed, or was mistyped. The text never repeats it.

        """
        raw = _decode(seed.strip())
        if len(raw) != _RAW_BYTES + 2 or raw[0] & 0xF8 != _SEED:
            raise ValueError("not an nkey seed")
        return cls(_kind((raw[0] & 7) << 5 | raw[1] >> 3), raw[2:])

    @property
    def seed(self) -> str:
        """The private key, encoded. Keep it where only its holder can read it."""
        return _encode(bytes([_SEED | self.kind >> 5, (self.kind & 31) << 3]) + self._raw)

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of ``data``, 64 bytes."""
        return self._private.sign(data)

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


def kind_of(public: str) -> Kind:
    """The kind of a public key.

    Raises:
        ValueError: it is none.

    """
    return _kind(_public_bytes(public)[0])


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``public``'s signature of ``data``.

    Raises:
        ValueError: ``public`` is not a public nkey.

    """
    try:
        Ed25519PublicKey.from_public_bytes(_public_bytes(public)[1:]).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _public_bytes(public: str) -> bytes:
    raw = _decode(public)
    if len(raw) != _RAW_BYTES + 1:
        raise ValueError("not a public nkey")
    return raw


def _kind(prefix: int) -> Kind:
    try:
        return Kind(prefix)
    except ValueError:
        raise ValueError("an nkey of a kind that is not used here") from None


def _encode(raw: bytes) -> str:
    return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")


def _decode(text: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raise ValueError("not an nkey: it is not base32") from None
    if len(raw) < 3 or _encode(raw[:-2]) != text:  # the last letter has bits that decoding drops
        raise ValueError("not an nkey: its checksum is wrong")
    return raw[:-2]


def _checksum(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(2, "little")
