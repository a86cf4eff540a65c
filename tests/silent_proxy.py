"""A TCP proxy that can fall silent: its connections stay open, and nothing arrives any more.

So it is where a cable is pulled, a firewall forgets a connection, or a machine dies: nobody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from broker_policy.embedded.ports import LOOPBACK


class SilentProxy:
    """To ``port`` of this machine, from a port of its own."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connections = 0  # that were ever made
        self._to = port
        self._ways: set[_Way] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []  # also those whose other end is gone unheard
        self._server: asyncio.Server | None = None

    def forget(self) -> int:
        """Let nothing pass any more on the connections there are; how many these are. New ones work."""
        for way in self._ways:
            way.silent = True
        return len(self._ways) // 2

    @property
    def url(self) -> str:
        """Where a NATS client connects to it."""
        return f"tls://{LOOPBACK}:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, far_writer]
        for way in (_Way(reader, far_writer), _Way(far_reader, writer)):
            self._ways.add(way)
            task = asyncio.ensure_future(way.pump())
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)
            task.add_done_callback(lambda _, way=way: self._ways.discard(way))

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in tuple(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close now


class _Way:
    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self.silent = False
        self.sink = sink
        self._source = source

    async def pump(self) -> None:
        """Pass on, until its end: that does not arrive either where it is silent."""
        with contextlib.suppress(OSError):
            while chunk := await self._source.read(1 << 16):
                if not self.silent:
                    self.sink.write(chunk)
                    await self.sink.drain()
        if not self.silent:
            self.sink.transport.abort()


@contextlib.asynccontextmanager
async def silent_proxy(port: int) -> AsyncIterator[SilentProxy]:
    """A proxy that runs."""
    proxy = SilentProxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
