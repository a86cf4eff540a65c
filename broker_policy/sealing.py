"""What workers seal so that nothing has to be remembered: reply capabilities, instance ids, salts.

All keys derive from one sealing key by HKDF-SHA256 (RFC 5869); reply capabilities are AES-256-GCM
(NIST SP 800-38D) under a subkey of the sealing worker, with a counter as nonce. A worker id is drawn
anew at every process start, so a counter never repeats under one subkey.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker_policy.tenants.material import SealingKey

_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_INSTANCE_RANDOM = 10
_INSTANCE_MAC = 10
SALT_BYTES = 16


class SealBroken(Exception):
    """A capability that no worker of this system sealed, or not under a key still in use."""


@dataclass(frozen=True, slots=True)
class ReplyCapability:
    """The right of ``target`` to answer one request, once, until ``deadline``."""

    namespace: str
    requester: str
    instance: str
    correlation: str
    target: str
    message_id: str
    deadline: int  # unix milliseconds


class Sealer:
    """Seals and opens on behalf of one worker process.

    ``keys`` holds the current sealing key first, then previous ones that are still accepted.
    """

    def __init__(self, worker: str, keys: Sequence[SealingKey]) -> None:
        self._by_id = {bytes.fromhex(key.key_id): key for key in keys}
        current = keys[0]
        self._head = bytes.fromhex(current.key_id) + bytes([len(worker)]) + worker.encode()
        self._cipher = AESGCM(current.reply_key(worker))
        self._counter = itertools.count()
        self._salt_key = current.salt_key
        self._instance_keys = [key.instance_key for key in keys]

    def seal(self, capability: ReplyCapability) -> str:
        """The capability as a header value."""
        nonce = next(self._counter).to_bytes(_NONCE_BYTES, "big")
        head = self._head + nonce
        body = orjson.dumps(
            [
                capability.namespace,
                capability.requester,
                capability.instance,
                capability.correlation,
                capability.target,
                capability.message_id,
                capability.deadline,
            ]
        )
        return base64.urlsafe_b64encode(head + self._cipher.encrypt(nonce, body, head)).decode()

    def open(self, token: str) -> ReplyCapability:
        """The capability that any worker sealed.

        Raises:
            SealBroken: it is altered, foreign, or sealed under a key no longer accepted.

        """
        try:
            raw = base64.urlsafe_b64decode(token.encode())
            key = self._by_id[raw[:_KEY_ID_BYTES]]
            worker_end = _KEY_ID_BYTES + 1 + raw[_KEY_ID_BYTES]
            worker = raw[_KEY_ID_BYTES + 1 : worker_end].decode()
            head, sealed = raw[: worker_end + _NONCE_BYTES], raw[worker_end + _NONCE_BYTES :]
            fields = orjson.loads(_cipher_of(key, worker).decrypt(head[-_NONCE_BYTES:], sealed, head))
            return ReplyCapability(*fields)
        except (InvalidTag, KeyError, IndexError, ValueError, TypeError) as error:
            raise SealBroken("not a reply capability of this system") from error

    def salt(self, sender: str, message_id: str) -> bytes:
        """The salt of a message's commitment: the same for a repetition, unguessable without the key."""
        return hmac.digest(self._salt_key, f"{sender}\0{message_id}".encode(), "sha256")[:SALT_BYTES]

    def new_instance(self, namespace: str, agent: str) -> str:
        """A name for an instance, which ``owns_instance`` recognises later without a table."""
        random = secrets.token_hex(_INSTANCE_RANDOM // 2)
        return random + self._instance_mac(self._instance_keys[0], namespace, agent, random)

    def owns_instance(self, namespace: str, agent: str, instance: str) -> bool:
        """Whether ``instance`` was given to ``agent`` by a worker of this system."""
        random, mac = instance[:_INSTANCE_RANDOM], instance[_INSTANCE_RANDOM:]
        if not mac.isascii():
            return False
        return any(
            hmac.compare_digest(self._instance_mac(key, namespace, agent, random), mac)
            for key in self._instance_keys
        )

    @staticmethod
    def _instance_mac(key: bytes, namespace: str, agent: str, random: str) -> str:
        return hmac.new(key, f"{namespace}\0{agent}\0{random}".encode(), hashlib.sha256).hexdigest()[
            :_INSTANCE_MAC
        ]


def commitment(salt: bytes, target: str, message_type: str, body: bytes) -> str:
    """Commits to a message's content without telling anything about it to those without the salt."""
    content = hashlib.sha256(body).digest()
    mac = hmac.digest(salt, b"\0".join((target.encode(), message_type.encode(), content)), "sha256")
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


@lru_cache(maxsize=256)
def _cipher_of(key: SealingKey, worker: str) -> AESGCM:
    return AESGCM(key.reply_key(worker))
