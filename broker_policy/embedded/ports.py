"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
_FIRST, _LAST = 15_000, 32_000
"""Below the range from which systems take the ports of outgoing connections: a client that reconnects to a
server that is down could otherwise be given the server's own port, and connect to itself."""
_given: set[int] = set()
"""What this process was given already: three nodes choose nine ports before the first of them is taken."""


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now: another at each call, at random: two processes hardly ever get the same.

    Raises:
        OSError: none was found.

    """
    for _ in range(200):
        port = random.randint(_FIRST, _LAST)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise OSError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}")
