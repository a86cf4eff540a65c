"""What the SDK asks of the way to its broker: the seam that ``mas_nats.testing`` replaces.

Everything above it, from pulling to compare-and-set, is the same code on every transport.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

from mas_nats.errors import MasError, Unavailable
from mas_nats.wire.headers import STATUS


class NotSent(MasError):
    """The exchange never left this process: there was no connection."""


class NoAnswer(MasError):
    """The exchange went out and no answer came back: in time, or before the connection was lost."""


class NoResponders(MasError):
    """Nobody is there to take it."""


class Incoming(NamedTuple):
    """A message from the broker."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    data: bytes

    @property
    def status(self) -> str:
        """The status of a message from the server itself, else an empty string."""
        return self.headers.get(STATUS, "") if not self.data else ""


Receive = Callable[[Incoming], None]
Listener = Callable[[], Awaitable[None]]


class Subscription(Protocol):
    """A standing subscription; it survives reconnects."""

    async def drain(self) -> None:
        """End it, after everything the broker had sent for it was received."""

    async def end(self) -> None:
        """End it now; what is on the way is dropped."""


class Connection(Protocol):
    """One agent instance's connection.

    ``before_reconnect`` runs before a planned reconnect, so that nothing is on its way when the connection
    changes; ``after_reconnect`` runs after any. ``at_loss`` is called when a connection is lost, before
    anything comes from the next.
    """

    before_reconnect: list[Listener]
    after_reconnect: list[Listener]
    at_loss: list[Callable[[], None]]

    async def open(self, timeout: float) -> None:
        """Connect.

        Raises:
            ConfigurationError: a certificate file, or the broker's own certificate, cannot be used.
            IdentityRefused: the broker refused this certificate. Not repeated.
            Unavailable: no broker answered within ``timeout`` seconds.

        """

    async def close(self) -> None:
        """Flush and disconnect. Exchanges that still wait get ``NoAnswer``."""

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, in bytes, headers included."""

    async def exchange(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> Incoming:
        """Publish and wait for the one answer.

        Raises:
            NotSent: there was no connection for ``timeout`` seconds; nothing was sent.
            IdentityRefused: the same, because the broker refuses this certificate.
            NoAnswer: no answer within ``timeout`` seconds, or the connection was lost meanwhile.
            NoResponders: nobody is there to take it.
            PermissionDenied: this identity may not publish to ``subject``.

        """

    async def publish(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        """Publish. While the broker is away it is buffered and sent after the reconnect.

        Raises:
            NotSent: the buffer is full, or the connection was closed.

        """

    async def subscribe(self, subject: str, receive: Receive) -> Subscription:
        """Call ``receive`` for every message on ``subject``, in order."""

    async def flush(self, timeout: float = 5.0) -> bool:
        """Wait until the server has taken everything published so far; False when it did not in time."""

    async def reconnect(self) -> None:
        """Connect anew: permissions are those of the moment of connecting."""


class SignsOfLife(Protocol):
    """Tells the broker which deliveries are still being handled."""

    def add(self, ack_subject: str) -> None:
        """A handler starts."""

    def remove(self, ack_subject: str) -> None:
        """A handler has ended."""

    async def stop(self) -> None:
        """No handler is left."""


class Transport(Protocol):
    """The way of one agent to its broker, and the time there."""

    def connection(self, name: str) -> Connection:
        """A connection that is not open yet; ``name`` is for whoever looks at the broker."""

    def signs_of_life(self, name: str, ack_wait: Callable[[], float]) -> SignsOfLife:
        """For an instance whose deliveries come again after ``ack_wait`` seconds of silence at the time."""

    def now(self) -> float:
        """Unix time, in seconds."""


def unreachable(error: NotSent) -> Unavailable:
    """The public error for an exchange that never left."""
    return Unavailable(f"{error}. Nothing was sent: repeat it when the broker is back")
