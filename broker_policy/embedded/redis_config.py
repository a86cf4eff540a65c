"""The configuration of a redis-server that keeps the audit: flushed before it answers, nothing evicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker_policy.embedded.config_file import quoted

_CONFIG = """\
bind {bind}
port {port}
protected-mode yes
requirepass {password}
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

    def render(self, password: str) -> str:
        """The file: as secret as ``password``."""
        return _CONFIG.format(
            bind=self.bind,
            port=self.port,
            password=quoted(password),
            folder=quoted(self.folder),
            log=quoted(self.log or ""),
            appendfsync="everysec" if self.relaxed else "always",
        )
