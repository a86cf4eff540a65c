"""TCP proxies between the nodes of a cluster, each way one of its own, so that a test can part any two.

They run in a thread, since a cluster may outlive the event loop of a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Iterator
from itertools import permutations
from typing import Any, TypeVar

from broker_policy.embedded.layout import Layout
from broker_policy.embedded.nodes import write_routes
from broker_policy.embedded.ports import LOOPBACK, free_port

_T = TypeVar("_T")


class RouteProxies:
    """Make them before ``mas up --nodes 3`` in the folder, which then uses them."""

    def __init__(self, layout: Layout, nodes: int = 3) -> None:
        self._layout = layout
        self._numbers = range(1, nodes + 1)
        self._ways = {(one, other): _Way() for one, other in permutations(self._numbers, 2)}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run(self._listen())
        write_routes(
            layout,
            {
                one: {
                    other: f"{LOOPBACK}:{self._ways[one, other].port}"
                    for other in self._numbers
                    if other != one
                }
                for one in self._numbers
            },
        )

    def part(self, one: int, other: int, *, silent: bool = False) -> None:
        """Let nothing pass between two nodes, either way.

        Their connections are cut and new ones refused; with ``silent`` they stay, and nothing arrives, as
        when a cable is pulled.
        """
        for way in ((one, other), (other, one)):
            self._run(self._ways[way].close(silent=silent))

    def join(self, one: int, other: int) -> None:
        """Let everything pass again; what was held up on the way is lost with its connection."""
        for way in ((one, other), (other, one)):
            self._run(self._ways[way].open())

    def isolate(self, node: int, *, silent: bool = False) -> None:
        """Part a node from all others."""
        for other in self._numbers:
            if other != node:
                self.part(node, other, silent=silent)

    def heal(self) -> None:
        """Join all."""
        for one, other in self._ways:
            self._run(self._ways[one, other].open())

    @contextlib.contextmanager
    def isolated(self, node: int, *, silent: bool = False) -> Iterator[None]:
        """Part a node from all others for the length of the block."""
        self.isolate(node, silent=silent)
        try:
            yield
        finally:
            self.heal()

    def stop(self) -> None:
        """End all of them."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        for (_, other), way in self._ways.items():
            await way.listen(self._layout, other)

    async def _end(self) -> None:
        for way in self._ways.values():
            await way.end()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class _Way:
    """From one node to another."""

    def __init__(self) -> None:
        self.port = free_port()
        self._refusing = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, layout: Layout, to: int) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._refusing:
                writer.transport.abort()
                return
            await self._connect(layout, to, reader, writer)

        self._server = await asyncio.start_server(accept, LOOPBACK, self.port)

    async def _connect(
        self, layout: Layout, to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        port = json.loads(layout.ports.read_bytes())["nodes"][to - 1]["route"]
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._pump(source, sink))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                await self._passing.wait()
                sink.write(chunk)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)

    async def close(self, *, silent: bool) -> None:
        if silent:
            self._passing.clear()
        else:
            self._refusing = True
            self._cut()

    async def open(self) -> None:
        if not self._passing.is_set():
            self._cut()
        self._refusing = False
        self._passing.set()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def end(self) -> None:
        if self._server is not None:
            self._server.close()
        self._cut()
        for task in tuple(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
