"""The configuration of a redis-server that keeps the audit: flushed before it answers, nothing evicted."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from broker_policy.audit.layout import EVERY_KEY
from broker_policy.embedded.config_file import quoted
from broker_policy.identity.private_files import private_folder, write_private

READER = "reader"
"""The user that may read the audits and change nothing."""
READER_MAY = (
    "resetchannels",
    f"~{EVERY_KEY}",
    *("-@all", "+@read", "-@dangerous", "+ping", "+multi", "+exec"),
    # Commands within a script are those of the user that runs it.
    *("+evalsha", "+script|load", "+script|exists"),
)
"""What Redis lets it do, in the words of ``ACL SETUSER``."""

_CONFIG = """\
bind {bind}
port {port}
protected-mode yes
requirepass {password}
user {reader} on #{reader_digest} {reader_may}
dir {folder}
daemonize no
logfile {log}
# What is acknowledged is on disk (DESIGN 7, 8).
appendonly yes
appendfsync {appendfsync}
no-appendfsync-on-rewrite no
save ""
# An audit entry must never be evicted to make room.
maxmemory-policy noeviction
"""


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """What a redis-server is told.

    ``bind`` are addresses, separated by spaces. Without ``log`` it writes to its standard output. ``relaxed``
    flushes every second instead of before each answer.
    """

    bind: str
    port: int
    folder: Path
    log: Path | None = None
    relaxed: bool = False

    def render(self, password: str, reader: str) -> str:
        """The file: as secret as ``password``. ``reader`` is what ``reader_secret`` gives."""
        name, _, theirs = reader.partition(":")
        return _CONFIG.format(
            bind=self.bind,
            port=self.port,
            password=quoted(password),
            reader=name,
            reader_digest=hashlib.sha256(theirs.encode()).hexdigest(),
            reader_may=" ".join(READER_MAY),
            folder=quoted(self.folder),
            log=quoted(self.log or ""),
            appendfsync="everysec" if self.relaxed else "always",
        )


def reader_secret(path: Path) -> str:
    """Name and password of the reader, with a colon between, as ``path`` has them; made where it has none."""
    if not path.exists():
        private_folder(path.parent)
        write_private(path, f"{READER}:{secrets.token_urlsafe(32)}".encode())
    return path.read_text()
