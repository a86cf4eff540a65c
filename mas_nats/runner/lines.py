"""Bytes of a pipe as lines of text."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

logger = logging.getLogger("mas_nats")

_MOST = 64 << 10
"""Bytes after which a line is told although it goes on."""


class Lines:
    """Cuts what comes into lines; the last one needs no end.

    A line that cannot be told is left out, and reading goes on: who writes to a pipe that nobody reads fails.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take some bytes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._tell(line)
        while len(self._rest) >= _MOST:
            self._tell(self._rest[:_MOST])
            self._rest = self._rest[_MOST:]

    def end(self) -> None:
        """Nothing more comes."""
        if self._rest:
            self._tell(self._rest)
        self._rest = b""

    def _tell(self, line: bytes) -> None:
        try:
            self._say(line.removesuffix(b"\r").decode(errors="replace"))
        except Exception:
            logger.exception("a line could not be told")


async def read(descriptor: int, say: Callable[[str], None]) -> None:
    """Tell the lines of a pipe until its end; closes it."""
    loop, lines = asyncio.get_running_loop(), Lines(say)
    stream = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", 0)
    )
    try:
        while data := await stream.read(1 << 16):
            lines.feed(data)
    finally:
        lines.end()
        transport.close()
