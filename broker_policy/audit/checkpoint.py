"""Checkpoints: what the signer says of a chain, with an Ed25519 signature.

They lie in a JetStream stream, so that two stores would have to be rewritten to hide a cut (DESIGN 7).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from broker_policy.audit.chain import canonical

_CONTEXT = b"mas audit checkpoint v1\0"


@dataclass(frozen=True, slots=True)
class Loss:
    """Entries ``first`` to ``last`` were signed before and are lost; ``hash`` is what the last one had."""

    first: int
    last: int
    hash: str  # hexadecimal
    reason: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """At ``time`` the chain of ``namespace`` had ``hash`` at ``index`` and held the log to ``sequence``."""

    namespace: str
    index: int
    hash: str  # hexadecimal
    sequence: int
    time: int  # unix milliseconds
    lost: Loss | None = None  # what somebody accepted with this checkpoint

    def body(self) -> dict[str, Any]:
        """As it is written."""
        out: dict[str, Any] = {
            "at": self.time,
            "h": self.hash,
            "i": self.index,
            "ns": self.namespace,
            "s": self.sequence,
        }
        if self.lost is not None:
            out["lost"] = [self.lost.first, self.lost.last, self.lost.hash, self.lost.reason]
        return out

    def _signed(self) -> bytes:
        return _CONTEXT + canonical(self.body())


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with its signature, which is not checked yet."""

    checkpoint: Checkpoint
    signature: bytes
    key: str  # names the key

    @classmethod
    def sign(cls, checkpoint: Checkpoint, key: Ed25519PrivateKey) -> SignedCheckpoint:
        """Sign ``checkpoint``."""
        return cls(checkpoint, key.sign(checkpoint._signed()), key_name(key.public_key()))  # noqa: SLF001

    def verify(self, keys: Sequence[Ed25519PublicKey]) -> bool:
        """Whether one of ``keys`` signed it."""
        for key in keys:
            try:
                key.verify(self.signature, self.checkpoint._signed())  # noqa: SLF001
            except InvalidSignature:
                continue
            return True
        return False

    def encode(self) -> bytes:
        """As JSON."""
        signature = base64.urlsafe_b64encode(self.signature).decode()
        return orjson.dumps({"checkpoint": self.checkpoint.body(), "key": self.key, "signature": signature})

    @classmethod
    def decode(cls, raw: bytes) -> SignedCheckpoint:
        """Read one.

        Raises:
            ValueError: it is none.

        """
        try:
            out = orjson.loads(raw)
            body = out["checkpoint"]
            checkpoint = Checkpoint(
                namespace=str(body["ns"]),
                index=int(body["i"]),
                hash=str(body["h"]),
                sequence=int(body["s"]),
                time=int(body["at"]),
                lost=Loss(*body["lost"]) if "lost" in body else None,
            )
            return cls(checkpoint, base64.urlsafe_b64decode(out["signature"]), str(out["key"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a checkpoint: {error!r}") from error


def key_name(key: Ed25519PublicKey) -> str:
    """A short name of a key, the same on every machine."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """The key in ``checkpoint.pub``.

    Raises:
        ValueError: it is no Ed25519 public key in PEM.

    """
    key = load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the checkpoint key must be an Ed25519 public key in PEM")  # noqa: TRY004
    return key
