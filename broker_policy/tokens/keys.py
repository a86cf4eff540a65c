"""The keys that sign tokens: one signs, all that may have signed a token that lives are believed.

They lie in a ring like the sealing keys and change over like them; both halves of a pair are derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker_policy.clock import Milliseconds
from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from mas_nats.tokens import jwt
from mas_nats.tokens.claims import LIFETIME, TOLERANCE, Claims

BELIEVED_MS = 1000 * (LIFETIME + 2 * TOLERANCE)
"""Milliseconds for which a retired key is believed: as long as the last token lives that it has signed."""
_PURPOSE = "token/ed25519"


class NoKey(Exception):
    """This worker has no key to sign with."""


@dataclass(slots=True)
class TokenKeys:
    """Signs and reads tokens. ``ring`` gives the keys as they are now; None: this worker has none."""

    ring: Callable[[], SealingRing | None]
    clock: Milliseconds
    _private: dict[str, Ed25519PrivateKey] = field(default_factory=dict)

    def sign(self, claims: Claims) -> str:
        """The token.

        Raises:
            NoKey: there is no key.

        """
        current = self._require().current
        return jwt.sign(claims, current.key_id, self._pair(current))

    def read(self, token: str) -> Claims:
        """What a token says.

        Raises:
            InvalidToken: it is not taken.
            NoKey: there is no key.

        """
        return jwt.read(token, self._public(), now=self.clock() / 1000)

    def jwks(self) -> dict[str, Any]:
        """The public keys, those too that will sign and those that did.

        Raises:
            NoKey: there is no key.

        """
        return jwt.jwks(self._public())

    def _public(self) -> dict[str, Ed25519PublicKey]:
        ring, now = self._require(), self.clock()
        late = {each.key.key_id for each in ring.retired if now > each.at + BELIEVED_MS}
        return {key.key_id: self._pair(key).public_key() for key in ring if key.key_id not in late}

    def _pair(self, key: SealingKey) -> Ed25519PrivateKey:
        found = self._private.get(key.key_id)
        if found is None:
            found = Ed25519PrivateKey.from_private_bytes(key.derive(_PURPOSE))
            self._private = {**self._private, key.key_id: found}
        return found

    def _require(self) -> SealingRing:
        ring = self.ring()
        if ring is None:
            raise NoKey
        return ring
