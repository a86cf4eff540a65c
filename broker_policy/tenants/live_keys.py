"""Keys that are followed while they are used: their files may be replaced at any time.

Whoever connects asks for the key at each attempt, so a rotated one needs no restart.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from broker_policy.identity.nkeys import KeyPair
from broker_policy.tenants.material import SignerKeys, WorkerKeys
from broker_policy.tenants.sealing_ring import SealingRing
from mas_nats.errors import ConfigurationError

log = logging.getLogger(__name__)


class WorkerSecrets(Protocol):
    """``WorkerKeys``, or those that are followed."""

    @property
    def auth_signing(self) -> KeyPair:
        """Signs the answers to authorization requests."""

    @property
    def auth_user(self) -> KeyPair:
        """The user that answers authorization requests."""

    @property
    def tenant_signing(self) -> KeyPair:
        """Signs users of tenants and agents."""

    @property
    def control_worker(self) -> KeyPair:
        """Signs users that read policy."""

    @property
    def system_observer(self) -> KeyPair:
        """Signs users that ask for servers' settings."""


class SignerSecrets(Protocol):
    """``SignerKeys``, or those that are followed."""

    @property
    def control_signer(self) -> KeyPair:
        """Signs users that append checkpoints."""


class LiveWorkerKeys:
    """The keys of a worker, as they are in ``keys`` now. ``keys`` None: always the ``first`` ones."""

    def __init__(self, first: WorkerKeys, keys: Path | None) -> None:
        self._current = first
        self._keys = keys
        self._stamps: tuple[int, ...] = ()
        self._unusable = ""

    def refresh(self) -> bool:
        """Read the files again where they changed; whether the keys are others now.

        Files that cannot be used, for instance half copied, change nothing; they are looked at again.
        """
        if self._keys is None:
            return False
        try:
            stamps = _stamps(self._keys / "worker")
            if stamps == self._stamps:
                return False
            keys = WorkerKeys.load(self._keys)
        except (ConfigurationError, OSError) as error:
            if str(error) != self._unusable:
                log.error("keys stay as they were: %s", error)
            self._unusable = str(error)
            return False
        self._stamps, self._unusable = stamps, ""
        same = _secrets(keys) == _secrets(self._current)
        self._current = keys
        if same:
            return False
        log.info("keys read again: %s", self.names())
        return True

    def names(self) -> dict[str, object]:
        """What others may know of the keys in use, for the worker's heartbeat."""
        return _names(self._current)

    @property
    def auth_signing(self) -> KeyPair:
        """As ``WorkerKeys``."""
        return self._current.auth_signing

    @property
    def auth_user(self) -> KeyPair:
        """As ``WorkerKeys``."""
        return self._current.auth_user

    @property
    def tenant_signing(self) -> KeyPair:
        """As ``WorkerKeys``."""
        return self._current.tenant_signing

    @property
    def control_worker(self) -> KeyPair:
        """As ``WorkerKeys``."""
        return self._current.control_worker

    @property
    def system_observer(self) -> KeyPair:
        """As ``WorkerKeys``."""
        return self._current.system_observer

    @property
    def sealing(self) -> SealingRing:
        """As ``WorkerKeys``."""
        return self._current.sealing

    @property
    def tokens(self) -> SealingRing | None:
        """As ``WorkerKeys``."""
        return self._current.tokens


class LiveSignerKeys:
    """The key with which the signer connects, read at each attempt."""

    def __init__(self, keys: Path) -> None:
        self._keys = keys
        self._last = SignerKeys.load(keys).control_signer

    @property
    def control_signer(self) -> KeyPair:
        """As ``SignerKeys``; the last usable one while the file cannot be used."""
        try:
            self._last = SignerKeys.load(self._keys).control_signer
        except ConfigurationError as error:
            log.error("the key stays as it was: %s", error)
        return self._last


def _secrets(keys: WorkerKeys) -> tuple[object, ...]:
    return _names(keys), keys.sealing, keys.tokens


def _names(keys: WorkerKeys) -> dict[str, object]:
    return {
        "auth-signing": keys.auth_signing.public,
        "auth-user": keys.auth_user.public,
        "tenant-signing": keys.tenant_signing.public,
        "control-worker": keys.control_worker.public,
        "sys-observer": keys.system_observer.public,
        "seals": keys.sealing.current.key_id,
        "accepts": [key.key_id for key in keys.sealing],
        **(
            {}
            if keys.tokens is None
            else {
                "signs-tokens": keys.tokens.current.key_id,
                "believes-tokens": [key.key_id for key in keys.tokens],
            }
        ),
    }


def _stamps(folder: Path) -> tuple[int, ...]:
    """Changes whenever a file is replaced."""
    found = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir())
    return tuple(hash(each) for each in found)
