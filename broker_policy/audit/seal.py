"""A seal: what the holder of the checkpoint key says of a segment of the chain in a file (ADR 26)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker_policy.audit import chain
from broker_policy.audit.chain import canonical
from broker_policy.audit.key_history import CheckpointKeys

_CONTEXT = b"mas audit seal v1\0"


@dataclass(frozen=True, slots=True)
class Seal:
    """Entries ``first`` to ``last`` of ``namespace`` are in a file with the digest ``file``."""

    namespace: str
    first: int
    last: int
    before: str  # hash of the entry before the first, hexadecimal
    hash: str  # hash of the last entry
    file: str  # SHA-256 of the file, hexadecimal
    oldest: int  # unix milliseconds, of its entries
    youngest: int

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.namespace}-{self.first:012d}-{self.last:012d}.jsonl.gz"

    def body(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "before": self.before,
            "file": self.file,
            "first": self.first,
            "h": self.hash,
            "last": self.last,
            "ns": self.namespace,
            "oldest": self.oldest,
            "youngest": self.youngest,
        }

    def row(self) -> dict[str, Any]:
        """As JSON, for people."""
        return {"file": self.name, "first": self.first, "last": self.last, "sha256": self.file}


@dataclass(frozen=True, slots=True)
class SignedSeal:
    """A seal with its signature, which is not checked yet."""

    seal: Seal
    signature: bytes

    @classmethod
    def sign(cls, seal: Seal, key: Ed25519PrivateKey) -> SignedSeal:
        """Sign ``seal``."""
        return cls(seal, key.sign(_CONTEXT + canonical(seal.body())))

    def holds(self, keys: CheckpointKeys) -> bool:
        """Whether the current key signed it, or a retired one that reached as far."""
        if self._by(keys.current):
            return True
        reached = [
            key.public for key in keys.retired if self.seal.last <= key.last.get(self.seal.namespace, 0)
        ]
        return any(self._by(key) for key in reached)

    def _by(self, key: Ed25519PublicKey) -> bool:
        try:
            key.verify(self.signature, _CONTEXT + canonical(self.seal.body()))
        except InvalidSignature:
            return False
        return True

    def encode(self) -> bytes:
        """As JSON."""
        signature = base64.urlsafe_b64encode(self.signature).decode()
        return orjson.dumps({"seal": self.seal.body(), "signature": signature})

    @classmethod
    def decode(cls, raw: bytes) -> SignedSeal:
        """Read one.

        Raises:
            ValueError: it is none.

        """
        try:
            out = orjson.loads(raw)
            body = out["seal"]
            seal = Seal(
                namespace=str(body["ns"]),
                first=int(body["first"]),
                last=int(body["last"]),
                before=str(body["before"]),
                hash=str(body["h"]),
                file=str(body["file"]),
                oldest=int(body["oldest"]),
                youngest=int(body["youngest"]),
            )
            return cls(seal, base64.urlsafe_b64decode(out["signature"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a seal: {error!r}") from error


def trusted(namespace: str, seals: Iterable[SignedSeal], keys: CheckpointKeys) -> list[Seal]:
    """The seals that hold and follow one another from the first entry on."""
    found: list[Seal] = []
    index, before = 0, chain.genesis(namespace).hex()
    for signed in sorted(seals, key=lambda each: each.seal.first):
        seal = signed.seal
        if seal.namespace != namespace or not signed.holds(keys):
            continue
        if (seal.first, seal.before) == (index + 1, before) and seal.last > index:
            found.append(seal)
            index, before = seal.last, seal.hash
    return found


def covering(seals: Sequence[Seal], index: int) -> list[Seal]:
    """Those that hold an entry up to ``index``."""
    return [seal for seal in seals if seal.first <= index]
