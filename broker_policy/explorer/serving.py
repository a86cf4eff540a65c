"""Listening for browsers: where, with which certificates, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker_policy.explorer.people import Asked, People
from mas_nats.errors import ConfigurationError

_GRACE = 2
"""Seconds that open requests get when it stops; streams never end by themselves."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """For TLS. ``client_ca`` signs those of the people who may look; None: nobody needs one."""

    cert: Path
    key: Path
    client_ca: Path | None


class _Screened(H11Protocol):
    """Hangs up on certificates that are not an inspector's or operator's of the namespace.

    The CA signs those of agents, too, and an agent is nobody who may look at others. Whether the holder may
    is asked again at each request.
    """

    people: People
    admitted = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        raw = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        holder = None if raw is None else self.people.holder(raw)
        if holder is None:
            transport.abort()
            return
        self.admitted = True
        self.app = Asked(self.app, self.people, holder, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.admitted:  # what came with the handshake may still arrive
            super().data_received(data)


class _Server(uvicorn.Server):
    """Ends at a signal, after what the process has open was closed; uvicorn's own raises the signal again."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, self._end)
        try:
            yield
        finally:
            for each in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(each)

    def _end(self) -> None:
        self.should_exit = True
        self._ending()


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    certificates: Certificates | None,
    people: People | None = None,
    *,
    ready: Callable[[int], None],
    ending: Callable[[], None],
) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; with ``people``, to whom they let in by certificate.

    ``ready`` is called with the port once it listens, ``ending`` when it is to end: streams must end then.

    Raises:
        ConfigurationError: the address or a certificate cannot be used.

    """
    options: dict[str, Any] = {}
    if certificates is not None:
        options = {"ssl_certfile": certificates.cert, "ssl_keyfile": certificates.key}
        if certificates.client_ca is not None:
            screened = type("Screened", (_Screened,), {"people": people})
            options |= {"ssl_ca_certs": str(certificates.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
            options["http"] = screened
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        **{"http": H11Protocol, **options},
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    try:
        config.load()
        listening = config.bind_socket()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"a certificate cannot be used: {error}") from None
    except SystemExit:  # what uvicorn makes of an address that is taken
        raise ConfigurationError(f"{host}:{port} cannot be listened on: another --port?") from None
    server = _Server(config, ending)
    serving = asyncio.create_task(server.serve([listening]))
    listening.listen()  # from here on a connection waits, however long the start takes
    ready(int(listening.getsockname()[1]))
    await serving
