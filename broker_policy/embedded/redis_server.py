"""A real redis-server for the audit and the counters, in a folder of its own."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from broker_policy.embedded import binaries
from broker_policy.embedded.append_only import cut_open_block
from broker_policy.embedded.ports import LOOPBACK, free_port, is_free
from broker_policy.embedded.process import Process
from broker_policy.embedded.redis_config import RedisConfig, reader_secret
from broker_policy.identity.private_files import private_folder, write_private

log = logging.getLogger(__name__)


class RedisServer:
    """The server and its configuration.

    It listens on the loopback interface and asks for a random password, which is kept with the data in a
    file only its owner can read. A port of 0 is chosen free, once. ``relaxed`` flushes every second instead
    of before each answer.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, relaxed: bool = False, log: Path | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.log = (log or self.folder / "redis-server.log").absolute()
        self.config = self.folder / "redis.conf"
        self.password_file = self.folder / "password"
        self.reader_file = self.folder / "reader-password"
        self._relaxed = relaxed
        self.process = Process(
            "redis-server",
            [binaries.redis_server(), self.config],
            cwd=self.folder,
            output=self.log.with_suffix(".out"),
            ready=self._answers,
            prepare=self._prepare,
            logs=[self.log],
        )

    @property
    def password(self) -> str:
        """The password; made at the first call."""
        private_folder(self.folder)
        if not self.password_file.exists():
            write_private(self.password_file, secrets.token_urlsafe(32).encode())
        return self.password_file.read_text()

    @property
    def url(self) -> str:
        """Where clients connect, with the password: do not log it."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

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
        password = self.password
        private_folder(self.log.parent)
        settings = RedisConfig(
            bind=LOOPBACK, port=self.port, folder=self.folder, log=self.log, relaxed=self._relaxed
        )
        text = settings.render(password, reader_secret(self.reader_file))
        write_private(self.config, text.encode())

    def _prepare(self) -> None:
        self.write_config()
        # Where the port is taken one runs, and this cannot start.
        if is_free(self.port) and (cut := cut_open_block(self.folder)):
            log.warning("redis-server was ended while it wrote: %d bytes of an unfinished block are cut", cut)

    async def start(self, timeout: float = 30.0) -> None:
        """Start the server and return when it has loaded its data and answers.

        Raises:
            ServerDied: it ended, or did not answer within ``timeout`` seconds.

        """
        await self.process.start(timeout)

    async def stop(self, timeout: float = 5.0) -> None:
        """End the server with SIGTERM, with SIGKILL after ``timeout`` seconds."""
        await self.process.stop(timeout)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self.process.kill()

    def pause(self) -> None:
        """Halt the server (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        """Let the server go on after ``pause``."""
        self.process.resume()

    async def _answers(self) -> bool:
        client = redis.asyncio.Redis(
            host=LOOPBACK,
            port=self.port,
            password=self.password,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            await client.execute_command("PING")  # type: ignore[no-untyped-call]  # refused while it loads
            info = await client.info("server")
        except (RedisError, OSError):
            return False
        else:
            return int(info["process_id"]) == self.pid
        finally:
            await client.aclose()
