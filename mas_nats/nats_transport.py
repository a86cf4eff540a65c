"""The transport of every agent that is not under test: NATS with mutual TLS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mas_nats.config import Endpoint
from mas_nats.connection import NatsConnection
from mas_nats.keepalive import KeepAlive


@dataclass(frozen=True, slots=True)
class NatsTransport:
    """Reaches the broker at ``endpoint``."""

    endpoint: Endpoint

    def connection(self, name: str) -> NatsConnection:
        """A connection that is not open yet."""
        return NatsConnection(self.endpoint, name=name)

    def signs_of_life(self, name: str, ack_wait: Callable[[], float]) -> KeepAlive:
        """Signs from a thread, over a connection of their own."""
        return KeepAlive(self.connection, name=name, ack_wait=ack_wait)

    def now(self) -> float:
        """This machine's clock."""
        return time.time()
