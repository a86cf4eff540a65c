"""Which Redis a folder uses: one of its own, or one that was named and answers.

Settled by the first start, as the number of nodes is: the audit is one chain in one Redis, and a start that
took another would look like a loss of all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from broker_policy.audit.complaint import complaint
from broker_policy.embedded import durability
from broker_policy.embedded.layout import Layout
from broker_policy.identity.private_files import private_folder, write_private
from mas_nats.errors import ConfigurationError

_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Joined:
    """A Redis that is somebody else's: its address without, and ``user:password`` or nothing."""

    address: str
    secret: str

    @classmethod
    def of(cls, url: str, socket_timeout: float | None = None) -> Joined:
        """Take a URL apart."""
        parts = urlsplit(url)
        secret, at, place = parts.netloc.rpartition("@")
        query = "&".join(
            each
            for each in (parts.query, urlencode({"socket_timeout": socket_timeout}) if socket_timeout else "")
            if each
        )
        address = urlunsplit((parts.scheme, place, parts.path, query, ""))
        if parts.scheme == "unix" and not place:
            address = f"unix://{parts.path}" + (f"?{query}" if query else "")
        return cls(address, secret if at else "")

    @property
    def place(self) -> str:
        """The address without options."""
        return self.address.partition("?")[0]

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        parts = urlsplit(self.address)
        return parts.scheme == "unix" or (parts.hostname or "") in _LOCAL


async def choose(
    layout: Layout,
    url: str,
    say: Callable[[str], None],
    *,
    relaxed: bool,
    socket_timeout: float | None = None,
) -> Joined | None:
    """The Redis to join, or None for the folder's own.

    Raises:
        ConfigurationError: the Redis with this folder's audit is another, or does not answer.
        NotDurable: the Redis to join acknowledges before it flushes, and the start is not relaxed.

    """
    named = Joined.of(url, socket_timeout) if url else None
    settled = layout.joined_redis.read_text() if layout.joined_redis.exists() else ""
    if settled and (named is None or named.place != settled):
        raise ConfigurationError(f"the audit of {layout.root} is in the Redis on {settled}: name that one")
    if named is None:
        return None
    if not settled and (layout.redis / "redis.conf").exists():
        say(f"the audit of {layout.root} is in a Redis of its own: {named.place} is not used")
        return None
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=2.0, socket_connect_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )
    try:
        try:
            await client.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            if named.local and not settled and _silent(error):
                say(f"no Redis answers on {named.place}: one of its own is started")
                return None
            raise ConfigurationError(
                f"the Redis on {named.place} does not answer rightly ({complaint(error)}): see to it first"
            ) from None
        if not relaxed:
            durability.require(await durability.redis_findings(client))
    finally:
        await client.aclose()
    private_folder(layout.redis)
    write_private(layout.joined_redis, named.place.encode())
    write_private(layout.redis_password, named.secret.encode())
    say(f"joined the Redis on {named.place}")
    return named


def _silent(error: Exception) -> bool:
    """Whether nobody listens there; one that refuses the password or still loads its data is somebody."""
    return type(error) is redis.ConnectionError or isinstance(error, OSError)
