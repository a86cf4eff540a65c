"""The secret that workers share to seal, and those before and after it.

One file, ``sealing.key``, replaced whole: ``{"id", "key", "next": {"id", "key"}, "retired": [{"id", "key",
"at"}]}``. ``next`` is accepted before anybody seals with it, so that workers may change over one by one; a
retired key stays accepted for what was sealed under it (ADR 21).
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker_policy.audit.record import RecordKey
from broker_policy.identity.private_files import write_private
from mas_nats.errors import ConfigurationError

OPENS_MS = 3_660_000
"""Milliseconds for which a retired key still opens reply capabilities: the longest deadline, and a minute."""
KEPT_MS = 7 * 86_400_000
"""Milliseconds for which a retired key is kept: it recognises instances, repetitions, and records that wait
for projection. None of that gives anybody a right that the account would not."""
_KEY_BYTES = 32
_RECORD_MAC = "record-mac"


@dataclass(frozen=True, slots=True)
class SealingKey:
    """One secret, and its id, which travels in what it seals."""

    key_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def create(cls) -> SealingKey:
        """A new random one."""
        return cls(secrets.token_hex(4), os.urandom(_KEY_BYTES))

    def derive(self, purpose: str) -> bytes:
        """The 32-byte subkey for ``purpose`` (HKDF-SHA256)."""
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=purpose.encode()).derive(self.secret)

    @property
    def salt_key(self) -> bytes:
        """Makes the salts of audit commitments."""
        return self.derive("salt")

    @property
    def instance_key(self) -> bytes:
        """Makes and checks the names of instances."""
        return self.derive("instance")

    def reply_key(self, worker_id: str) -> bytes:
        """Seals reply tokens of one worker; any worker can derive it to open them."""
        return self.derive(f"reply/{worker_id}")


@dataclass(frozen=True, slots=True)
class Retired:
    """A key that seals no more, since ``at`` (unix milliseconds)."""

    key: SealingKey
    at: int


@dataclass(frozen=True, slots=True)
class SealingRing:
    """The key that seals, the one that will, and those that did, the last retired first."""

    current: SealingKey
    next: SealingKey | None = None
    retired: tuple[Retired, ...] = ()

    @classmethod
    def read(cls, path: Path) -> SealingRing:
        """Read ``sealing.key``.

        Raises:
            ConfigurationError: it is missing or damaged.

        """
        try:
            raw = orjson.loads(path.read_bytes())
            return cls(
                _key(raw),
                _key(raw["next"]) if raw.get("next") else None,
                tuple(Retired(_key(each), int(each["at"])) for each in raw.get("retired", ())),
            )
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be read ({error.strerror}): restore it from the backup"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigurationError(f"{path} is damaged: restore it from the backup") from None

    def write(self, path: Path) -> None:
        """Write ``sealing.key``, at once."""
        raw = _raw(self.current)
        if self.next is not None:
            raw["next"] = _raw(self.next)
        if self.retired:
            raw["retired"] = [{**_raw(each.key), "at": each.at} for each in self.retired]
        write_private(path, orjson.dumps(raw))

    def __iter__(self) -> Iterator[SealingKey]:
        """Every key, the one that seals first."""
        yield self.current
        if self.next is not None:
            yield self.next
        for each in self.retired:
            yield each.key

    def opening(self, now: int) -> tuple[SealingKey, ...]:
        """The keys whose reply capabilities are accepted at ``now`` (unix milliseconds)."""
        late = {each.key.key_id for each in self.retired if now > each.at + OPENS_MS}
        return tuple(key for key in self if key.key_id not in late)

    def staged(self, key: SealingKey) -> SealingRing:
        """With ``key`` as the next one."""
        return replace(self, next=key)

    def turned(self, now: int) -> SealingRing:
        """The next key seals, the current one is retired.

        Raises:
            ValueError: there is no next key.

        """
        if self.next is None:
            raise ValueError("there is no next sealing key")
        return SealingRing(self.next, None, (Retired(self.current, now), *self.retired))

    def pruned(self, now: int) -> SealingRing:
        """Without the keys that nothing needs any more."""
        return replace(self, retired=tuple(each for each in self.retired if now <= each.at + KEPT_MS))

    @property
    def record_key(self) -> RecordKey:
        """Authenticates audit records, also those of workers that changed over earlier or later."""
        current, *others = (key.derive(_RECORD_MAC) for key in self)
        return RecordKey(current, tuple(others))


def _key(raw: dict[str, Any]) -> SealingKey:
    key = SealingKey(str(raw["id"]), base64.b64decode(raw["key"], validate=True))
    if len(key.secret) != _KEY_BYTES or len(bytes.fromhex(key.key_id)) != 4:
        raise ValueError("not a sealing key")
    return key


def _raw(key: SealingKey) -> dict[str, Any]:
    return {"id": key.key_id, "key": base64.b64encode(key.secret).decode()}
