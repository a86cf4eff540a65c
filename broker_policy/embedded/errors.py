"""What can go wrong with the embedded servers.

MasError
|- EmbeddedError
   |- BinaryMissing    no usable nats-server or redis-server; the text says how to get one
   |- ServerDied       a process ended, or did not get ready; the text has its last log lines
   |- NotDurable       the servers do not flush before they acknowledge
   |- AlreadyRunning   another ``mas up`` holds the folder
   |- NotRunning       no ``mas up`` holds the folder
"""

from __future__ import annotations

from mas_nats.errors import MasError


class EmbeddedError(MasError):
    """Anything about the embedded servers."""


class BinaryMissing(EmbeddedError):
    """No usable server binary. The text says which one and how to get it."""


class ServerDied(EmbeddedError):
    """A process ended, or did not get ready in time. The text has the last lines of its log."""


class NotDurable(EmbeddedError):
    """A server would acknowledge before it flushes to disk. The text names each setting to change."""


class AlreadyRunning(EmbeddedError):
    """Another ``mas up`` holds the folder."""


class NotRunning(EmbeddedError):
    """No ``mas up`` holds the folder."""
