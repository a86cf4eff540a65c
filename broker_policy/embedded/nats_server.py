"""A real nats-server with operator mode, mutual TLS and JetStream, in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import shutil
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import orjson

from broker_policy.embedded import binaries
from broker_policy.embedded.nats_config import Membership, NatsConfig
from broker_policy.embedded.ports import LOOPBACK, free_port
from broker_policy.embedded.process import Process
from broker_policy.identity.certificate_paths import CertificatePaths
from broker_policy.identity.private_files import private_folder, write_private

_ROOM_AGAIN = 16 << 20
"""Bytes that must be free before a server that met a full disk is started again."""


class ServerIdentity(Protocol):
    """What the server must know of operator and accounts; ``tenants.material.PublicMaterial`` is one."""

    def server_config(self) -> str:
        """The configuration lines: operator, system account, resolver, sentinel.

        Paths in it are relative to the server's folder.
        """


class NatsServer:
    """The server and its configuration.

    ``public`` is the identity part of the configuration, or the text itself (the empty text: no operator and
    no accounts, for tests of the server alone). ``host`` is where it listens for clients. Ports that are 0
    are chosen free, once: a restart keeps them. ``relaxed`` flushes every two minutes instead of before each
    acknowledgement, and so loses acknowledged messages in a power cut. ``membership`` makes it a node of a
    cluster. ``extra`` is appended to the configuration. ``name`` is the process's.
    """

    def __init__(
        self,
        folder: Path,
        public: ServerIdentity | str,
        *,
        server_cert: Path,
        server_key: Path,
        ca: Path,
        host: str = LOOPBACK,
        port: int = 0,
        monitor_port: int = 0,
        relaxed: bool = False,
        log: Path | None = None,
        name: str = "nats-server",
        membership: Membership | None = None,
        extra: str = "",
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.monitor_port = monitor_port or free_port()
        self.log = (log or self.folder / "nats-server.log").absolute()
        self.config = self.folder / "nats-server.conf"
        # Says in the greeting that it is ours, and stays the same over restarts.
        self._name = server_name(self.folder)
        self._settings = NatsConfig(
            name=self._name,
            listen=f"{host}:{self.port}",
            monitor=f"{LOOPBACK}:{self.monitor_port}",
            store=self.folder,
            certificate=CertificatePaths(ca.absolute(), server_cert.absolute(), server_key.absolute()),
            log=self.log,
            relaxed=relaxed,
            membership=membership,
            extra=extra,
        )
        self.public = public
        self.process = Process(
            name,
            [binaries.nats_server(), "-c", self.config],
            cwd=self.folder,
            output=self.log.with_suffix(".out"),
            ready=self._accepts,
            prepare=self.write_config,
            logs=[self.log],
            ailing=self._write_error,
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"tls://{LOOPBACK}:{self.port}"

    @property
    def monitor_url(self) -> str:
        """Where the server's own monitoring answers."""
        return f"http://{LOOPBACK}:{self.monitor_port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self.process.running

    def write_config(self) -> None:
        """Render the configuration; also done at each start."""
        private_folder(self.folder)
        private_folder(self.log.parent)
        identity = self.public if isinstance(self.public, str) else self.public.server_config()
        write_private(self.config, self._settings.render(identity).encode())

    async def start(self, timeout: float = 30.0) -> None:
        """Start the server and return when it accepts connections.

        Raises:
            ServerDied: it ended, or did not accept within ``timeout`` seconds.

        """
        await self.process.start(timeout)

    async def stop(self, timeout: float = 5.0) -> None:
        """End the server with SIGTERM, with SIGKILL after ``timeout`` seconds."""
        await self.process.stop(timeout)

    def reload(self) -> None:
        """Let the server read its configuration and certificates again (SIGHUP).

        Everything but the operator can change so; connections stay, agents are asked who they are again.
        """
        self.write_config()
        self.process.hang_up()

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self.process.kill()

    def pause(self) -> None:
        """Halt the server (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        """Let the server go on after ``pause``."""
        self.process.resume()

    async def _write_error(self) -> str:
        """The failed write after which a stream takes nothing more, once there is room on the disk again."""
        trouble = await asyncio.to_thread(write_error, self.monitor_url)
        return trouble if trouble and shutil.disk_usage(self.folder).free > _ROOM_AGAIN else ""

    async def _accepts(self) -> bool:
        """Whether our server, and not another that took the port, greets with its INFO line."""
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        try:
            greeting = await asyncio.wait_for(reader.readline(), 1.0)
            return greeting.startswith(b"INFO ") and f'"{self._name}"'.encode() in greeting
        except (OSError, TimeoutError, ValueError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def write_error(monitor_url: str) -> str:
    """What a server's health says of a stream that could not be written; "" when it says nothing of it.

    Such a stream answers nobody until the server is started again (tried on nats-server 2.15.1).
    """
    address = urlsplit(monitor_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        health = orjson.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    text = str(health.get("error", "")) if isinstance(health, dict) else ""
    return "a stream could not be written" if "write error" in text else ""


def server_name(folder: Path) -> str:
    """What the server in ``folder`` calls itself towards clients and other servers."""
    return f"mas-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}"
