"""The embedded nats-server follows its files: rotated keys and certificates are in use a moment later.

nats-server reads everything again on SIGHUP but the operator ("config reload not supported for
TrustedOperators", tried on 2.15.1): for that it is stopped, and its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nats_server import NatsServer
from broker_policy.embedded.nodes import until_formed
from broker_policy.tenants.material import PublicMaterial
from mas_nats.errors import ConfigurationError

_EVERY = 0.3


class ServerFiles:
    """Watches ``keys/public``, the server's certificate and the CA."""

    def __init__(self, layout: Layout, servers: Sequence[NatsServer], say: Callable[[str], None]) -> None:
        self._layout = layout
        self._servers = servers
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
        before = self._public
        changed = files != self._files or public.sentinel_jwt != before.sentinel_jwt
        self._public, self._files = public, files
        for server in self._servers:
            server.public = public
            if public.operator_jwt != before.operator_jwt:
                await self._start_again(server)
            elif changed:
                self._say(f"{server.process.name} reads its configuration and certificates again")
                server.reload()
            elif public.account_jwts != before.account_jwts:
                server.write_config()  # it has them already: this is for its next start

    async def _start_again(self, server: NatsServer) -> None:
        """Stop one; who watches it starts it. The next one's turn comes when the cluster is whole."""
        self._say(f"{server.process.name} starts again with another operator")
        await server.stop()
        while not server.running:  # noqa: ASYNC110 - who watches it sets no event
            await asyncio.sleep(_EVERY)
        if len(self._servers) > 1:
            await until_formed([each.monitor_url for each in self._servers])

    def _read(self) -> tuple[bytes, ...]:
        layout = self._layout
        return tuple(path.read_bytes() for path in (layout.ca, layout.server_cert, layout.server_key))
