"""One nkey file on its way from the current key to the next, in steps that a crash may interrupt anywhere.

``x.nk`` is what the holder uses. ``x.next.nk`` appears first; then the old one is kept as ``x.old.nk`` and
the next takes its place in one rename; at the end ``x.old.nk`` goes. Which files there are says how far it
is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker_policy.identity.nkeys import KeyPair
from broker_policy.identity.private_files import sync_folder, write_private
from mas_nats.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Staged:
    """The file ``x.nk``."""

    path: Path

    def begin(self) -> None:
        """Make the next key, unless a rotation is under way: then that one goes on."""
        if not self._next.exists() and not self._old.exists():
            next_key = KeyPair.create(self.current.kind)
            write_private(self._next, next_key.seed.encode())

    def turn(self) -> None:
        """Let the holder use the next key."""
        if self._next.exists():
            write_private(self._old, self.path.read_bytes())
            self._next.replace(self.path)
            sync_folder(self.path.parent)

    def finish(self) -> None:
        """Forget the old key."""
        self._old.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    @property
    def current(self) -> KeyPair:
        """What the holder uses."""
        return _read(self.path)

    @property
    def old(self) -> KeyPair:
        """The key that is replaced, before or after the turn."""
        return self.current if self._next.exists() else _read(self._old)

    @property
    def new(self) -> KeyPair:
        """The key that replaces it."""
        return _read(self._next) if self._next.exists() else self.current

    @property
    def under_way(self) -> bool:
        """Whether a rotation was begun and not finished."""
        return self._next.exists() or self._old.exists()

    @property
    def _next(self) -> Path:
        return self.path.with_suffix(".next.nk")

    @property
    def _old(self) -> Path:
        return self.path.with_suffix(".old.nk")


def _read(path: Path) -> KeyPair:
    try:
        return KeyPair.from_seed(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be used ({error}): restore it from the backup") from None
