"""The embedded nats-server follows its files: rotated keys and certificates are in use a moment later.

nats-server reads everything again on SIGHUP but the operator ("config reload not supported for
TrustedOperators", tried on 2.15.1): for that it is stopped, and its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.tenants.material import PublicMaterial
from mas_nats.errors import ConfigurationError

_EVERY = 0.3


class ServerFiles:
    """Watches ``keys/public``, the server's certificate and the CA."""

    def __init__(self, layout: Layout, server: NatsServer, say: Callable[[str], None]) -> None:
        self._layout = layout
        self._server = server
        self._say = say
        self._public = PublicMaterial.load(layout.keys)
        self._files = self._read()
        self._broken = ""

    async def follow(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.look()
            except (ConfigurationError, OSError) as error:
                if str(error) != self._broken:
                    self._say(f"nats-server keeps what it has: {error}")
                self._broken = str(error)
            else:
                self._broken = ""

    async def look(self) -> None:
        """Look once.

        Raises:
            ConfigurationError, OSError: the files cannot be read now.

        """
        public, files = PublicMaterial.load(self._layout.keys), self._read()
        before, self._server.public = self._public, public
        changed = files != self._files or public.sentinel_jwt != before.sentinel_jwt
        self._public, self._files = public, files
        if public.operator_jwt != before.operator_jwt:
            self._say("nats-server starts again with another operator")
            await self._server.stop()  # and is started by who watches it
        elif changed:
            self._say("nats-server reads its configuration and certificates again")
            self._server.reload()
        elif public.account_jwts != before.account_jwts:
            self._server.write_config()  # it has them already: this is for its next start

    def _read(self) -> tuple[bytes, ...]:
        layout = self._layout
        return tuple(path.read_bytes() for path in (layout.ca, layout.server_cert, layout.server_key))
