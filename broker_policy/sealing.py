"""What workers seal so that nothing has to be remembered: reply capabilities, cursors, instance ids, salts.

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
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from operator import attrgetter

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from broker_policy.tenants.sealing_ring import SealingKey
from mas_nats.wire.base64url import base64url
from mas_nats.wire.frames import Chunk

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
    stream: bool = False  # in frames, where the target likes


_parts = attrgetter(*(field.name for field in fields(ReplyCapability)))  # astuple copies each


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a streamed reply is: the right to send its next frame, and only that.

    ``held`` was sent by the producer and has not gone out yet, since what follows may make it a secret.
    """

    number: int = 0  # of the next frame
    run: str = ""
    mac: str = ""  # commits to everything sent so far
    held: tuple[Chunk, ...] = ()


class Sealer:
    """Seals and opens on behalf of one worker process. For ``keys`` see ``use``."""

    def __init__(self, worker: str, keys: Sequence[SealingKey]) -> None:
        self._worker = worker
        self._counter = itertools.count()
        self.use(keys, keys)

    def use(self, keys: Sequence[SealingKey], opening: Sequence[SealingKey]) -> None:
        """From here on seal with the first of ``keys``, and recognise what was made under any of them.

        Reply capabilities are accepted under those of ``opening`` only.
        """
        current = keys[0]
        self._by_id = {bytes.fromhex(key.key_id): key for key in opening}
        self._head = bytes.fromhex(current.key_id) + bytes([len(self._worker)]) + self._worker.encode()
        self._cipher = AESGCM(current.reply_key(self._worker))
        self._salts = [HMAC(key.salt_key, SHA256()) for key in keys]  # copied for each: half as long
        self._instance_keys = [key.instance_key for key in keys]
        self._frame_keys = [key.derive("frame") for key in keys]

    def seal(self, capability: ReplyCapability) -> str:
        """The capability as a header value."""
        parts = _parts(capability)
        if not capability.stream:
            parts = parts[:-1]  # as workers sealed it before there were streams
        return self._seal(orjson.dumps(parts), b"")

    def open(self, token: str) -> ReplyCapability:
        """The capability that any worker sealed.

        Raises:
            SealBroken: it is altered, foreign, or sealed under a key no longer accepted.

        """
        try:
            return ReplyCapability(*orjson.loads(self._open(token, b"")))
        except (InvalidTag, KeyError, IndexError, ValueError, TypeError) as error:
            raise SealBroken("not a reply capability of this system") from error

    def seal_cursor(self, capability: ReplyCapability, cursor: Cursor) -> str:
        """The cursor as a token that is worth something only together with ``capability``."""
        return self._seal(orjson.dumps(astuple(cursor)), _bound(capability))

    def open_cursor(self, capability: ReplyCapability, token: str) -> Cursor:
        """The cursor that any worker sealed for this answer.

        Raises:
            SealBroken: as for ``open``, or it belongs to another answer.

        """
        try:
            number, run, mac, held = orjson.loads(self._open(token, _bound(capability)))
            return Cursor(number, run, mac, tuple(held))
        except (InvalidTag, KeyError, IndexError, ValueError, TypeError) as error:
            raise SealBroken("not a cursor of this answer") from error

    def frame_macs(self, capability: ReplyCapability, cursor: Cursor, content: bytes) -> list[str]:
        """Commitments to a frame's content and all before it, of the current key first.

        Nobody but workers can compute one: what data-loss prevention kept back cannot be guessed from it.
        """
        head = b"\0".join((_bound(capability), str(cursor.number).encode(), cursor.mac.encode()))
        return [base64url(hmac.digest(key, head + b"\0" + content, "sha256")) for key in self._frame_keys]

    def _seal(self, body: bytes, bound: bytes) -> str:
        nonce = next(self._counter).to_bytes(_NONCE_BYTES, "big")
        head = self._head + nonce
        return base64.urlsafe_b64encode(head + self._cipher.encrypt(nonce, body, head + bound)).decode()

    def _open(self, token: str, bound: bytes) -> bytes:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        if base64.urlsafe_b64encode(raw).decode() != token:  # one token has one spelling
            raise ValueError("not as it was sealed")
        key = self._by_id[raw[:_KEY_ID_BYTES]]
        worker_end = _KEY_ID_BYTES + 1 + raw[_KEY_ID_BYTES]
        worker = raw[_KEY_ID_BYTES + 1 : worker_end].decode()
        head, sealed = raw[: worker_end + _NONCE_BYTES], raw[worker_end + _NONCE_BYTES :]
        return _cipher_of(key, worker).decrypt(head[-_NONCE_BYTES:], sealed, head + bound)

    def salt(self, sender: str, message_id: str) -> bytes:
        """The salt of a message's commitment: the same for a repetition, unguessable without the key."""
        return _salt(self._salts[0], sender, message_id)

    def other_salts(self, sender: str, message_id: str) -> list[bytes]:
        """The salts under the other keys: what a message got that was accepted before a rotation."""
        return [_salt(keyed, sender, message_id) for keyed in self._salts[1:]]

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


def _salt(keyed: HMAC, sender: str, message_id: str) -> bytes:
    mac = keyed.copy()
    mac.update(f"{sender}\0{message_id}".encode())
    return mac.finalize()[:SALT_BYTES]


def commitment(salt: bytes, target: str, message_type: str, body: bytes) -> str:
    """Commits to a message's content without telling anything about it to those without the salt."""
    content = hashlib.sha256(body).digest()
    return base64url(
        hmac.digest(salt, b"\0".join((target.encode(), message_type.encode(), content)), "sha256")
    )


def _bound(capability: ReplyCapability) -> bytes:
    """What ties a cursor to one answer; not empty, so that no cursor passes for a capability."""
    return b"cursor\0" + orjson.dumps(_parts(capability))


@lru_cache(maxsize=256)
def _cipher_of(key: SealingKey, worker: str) -> AESGCM:
    return AESGCM(key.reply_key(worker))
