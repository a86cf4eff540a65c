"""Which checkpoint key was valid where: the current one, and those before it with the last entry of each.

A retired key vouches for nothing beyond: not because of a time, which its thief could write as he likes, but
because the chain had gone on under the next key. The list is signed by the current key, so whoever knows that
one's public half can verify everything that came before.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker_policy.audit.chain import canonical
from broker_policy.audit.checkpoint import SignedCheckpoint

_CONTEXT = b"mas audit checkpoint keys v1\0"


@dataclass(frozen=True, slots=True)
class RetiredKey:
    """A key that signs no more; ``last``: by namespace, the last entry that it may have signed."""

    public: Ed25519PublicKey = field(repr=False)
    last: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CheckpointKeys:
    """The keys that may have signed, the current one and those before it."""

    current: Ed25519PublicKey = field(repr=False)
    retired: tuple[RetiredKey, ...] = ()

    def signed(self, signed: SignedCheckpoint) -> bool:
        """Whether ``signed`` was signed by the key that was valid for its entry."""
        if signed.verify([self.current]):
            return True
        checkpoint = signed.checkpoint
        return any(
            checkpoint.index <= key.last.get(checkpoint.namespace, 0) and signed.verify([key.public])
            for key in self.retired
        )

    def accepted(self, signed: SignedCheckpoint) -> bool:
        """Whether the loss in ``signed`` counts: a retired key cannot give up what came after it."""
        checkpoint = signed.checkpoint
        if checkpoint.lost is None or signed.verify([self.current]):
            return checkpoint.lost is not None
        return any(
            max(checkpoint.index, checkpoint.lost.last) <= key.last.get(checkpoint.namespace, 0)
            and signed.verify([key.public])
            for key in self.retired
        )

    def followed_by(self, following: Ed25519PublicKey, last: Mapping[str, int]) -> CheckpointKeys:
        """The keys after the current one was retired, its last entries being ``last``."""
        return CheckpointKeys(following, (*self.retired, RetiredKey(self.current, last)))

    def encode(self, key: Ed25519PrivateKey) -> bytes:
        """The retired ones as JSON, signed with the current ``key``."""
        keys = [
            {"public": base64.b64encode(each.public.public_bytes_raw()).decode(), "last": dict(each.last)}
            for each in self.retired
        ]
        current = base64.b64encode(self.current.public_bytes_raw()).decode()
        signature = key.sign(_CONTEXT + canonical({"current": current, "keys": keys}))
        return orjson.dumps(
            {
                "checkpoint_keys": keys,
                "current": current,
                "signature": base64.urlsafe_b64encode(signature).decode(),
            }
        )

    @classmethod
    def decode(cls, raw: bytes, current: Ed25519PublicKey | None = None) -> CheckpointKeys:
        """As ``encode`` wrote them. ``current``: the key that must have signed; else the one named there.

        Raises:
            ValueError: that key did not sign this.

        """
        try:
            out = orjson.loads(raw)
            keys, named = out["checkpoint_keys"], out["current"]
            if current is None:
                current = Ed25519PublicKey.from_public_bytes(base64.b64decode(named))
            content = canonical({"current": named, "keys": keys})
            current.verify(base64.urlsafe_b64decode(out["signature"]), _CONTEXT + content)
            retired = tuple(
                RetiredKey(
                    Ed25519PublicKey.from_public_bytes(base64.b64decode(each["public"])),
                    {str(name): int(index) for name, index in each["last"].items()},
                )
                for each in keys
            )
        except InvalidSignature:
            raise ValueError("the list of retired checkpoint keys is not signed by this key") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a list of checkpoint keys: {error!r}") from error
        return cls(current, retired)
