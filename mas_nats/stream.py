"""A streamed reply, as its requester reads it: in order, nothing missing, nothing twice (ADR 12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from mas_nats.errors import MasError, OutcomeUnknown, RequestFailed, RequestTimeout
from mas_nats.telemetry.off import UNWATCHED
from mas_nats.telemetry.watching import Sending
from mas_nats.transport import Incoming, NoAnswer, NoResponders, NotSent
from mas_nats.wire import headers
from mas_nats.wire.frames import WINDOW_BYTES, WINDOW_FRAMES, Chunk, FrameMark
from mas_nats.wire.verdict import Decision

IDLE = 2.0
"""Seconds of silence after which a reader looks for what it missed, and says again what it has read."""
LOST_AFTER = 3.0
"""Seconds after which a frame that is stored nowhere, though a later one is, is taken for lost."""
_PAUSE = 0.2
_KEPT_FRAMES = 2 * WINDOW_FRAMES
_KEPT_BYTES = 4 * WINDOW_BYTES
"""What a reader keeps of a producer that ignores its window; the rest is fetched when its turn comes."""
_TOLD_EVERY_FRAMES = WINDOW_FRAMES // 4
_TOLD_EVERY_BYTES = WINDOW_BYTES // 4
_DECISIONS = frozenset(str(decision) for decision in Decision)


@dataclass(frozen=True, slots=True)
class Asked:
    """The request whose reply is read."""

    message_id: str
    target: str
    message_type: str
    timeout: float  # seconds
    end: float  # by the loop's clock
    send: Callable[[], Awaitable[None]]
    away: str = ""  # the namespace of the target, where that is another one: its reply comes whole
    sending: Sending = UNWATCHED


class Reader:
    """Puts the frames of one reply in order, and fetches those that did not come."""

    def __init__(
        self,
        asked: Asked,
        *,
        fetch: Callable[[int, float], Awaitable[Incoming]],
        tell: Callable[[str, int], None],
        closed: Callable[[Reader], None],
    ) -> None:
        self.asked = asked
        self._fetch_stored = fetch
        self._tell = tell  # producer's instance, frames read
        self._closed = closed
        self._next = 0
        self._frames: dict[int, Incoming] = {}
        self._size = 0  # bytes in ``_frames``
        self._run = ""
        self._producer = ""
        self._told, self._since_told = 0, 0
        self._look = False  # something may have been missed
        self._gap_since: float | None = None
        self._error: MasError | None = None
        self._open = False
        self._ended = False
        self._arrived = asyncio.Event()

    async def ask(self) -> None:
        """Send the request."""
        self._open = True
        try:
            await self.asked.send()
        except OutcomeUnknown:
            if not self._frames:
                raise
        except MasError:
            self._open = False  # it was refused, or nobody could take it: there is nothing to cancel
            raise

    async def next(self) -> list[Chunk] | None:
        """The chunks of the next frame; None after the last.

        Raises:
            RequestTimeout: the timeout passed.
            RequestFailed: there will be no more.

        """
        loop = asyncio.get_running_loop()
        silent_since = loop.time()
        while not self._ended:
            if self._error is not None:
                raise self._error
            if (incoming := self._frames.pop(self._next, None)) is not None:
                self._size -= len(incoming.data)
                return self._read(incoming)
            if loop.time() >= self.asked.end:
                raise self._too_late()
            if self._frames or self._look or loop.time() - silent_since >= IDLE:
                silent_since = loop.time()
                await self._fetch(self.asked.end - loop.time())
                continue
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(min(self.asked.end, silent_since + IDLE)):
                    await self._arrived.wait()
            except TimeoutError:
                if self._producer:
                    self._tell(self._producer, self._next)  # the last time may have been lost
        return None

    def consumed(self) -> None:
        """The chunks that ``next`` gave were taken."""
        if self._producer and (
            self._next - self._told >= _TOLD_EVERY_FRAMES or self._since_told >= _TOLD_EVERY_BYTES
        ):
            self._told, self._since_told = self._next, 0
            self._tell(self._producer, self._next)

    def close(self) -> None:
        """Read no more; the producer is told, unless it had ended."""
        self._closed(self)
        self._open = False
        self._frames.clear()

    def fail(self, error: MasError) -> None:
        """End with ``error``."""
        self._error = self._error or error
        self._arrived.set()

    def resume(self) -> None:
        """The connection was away: something may have been missed."""
        self._look = True
        self._arrived.set()

    def receive(self, number: int, incoming: Incoming) -> None:
        """A frame has come, or was fetched."""
        if number < self._next:
            self._look_back(incoming)
        elif number == self._next or (
            number - self._next < _KEPT_FRAMES and self._size + len(incoming.data) <= _KEPT_BYTES
        ):
            if number not in self._frames:
                self._frames[number] = incoming
                self._size += len(incoming.data)
        else:
            self._look = True
        self._arrived.set()

    @property
    def unfinished(self) -> bool:
        """Whether somebody may still be writing for it."""
        return self._open and not self._ended

    # -- inside ------------------------------------------------------------------------------------
    def _read(self, incoming: Incoming) -> list[Chunk]:
        try:
            data: dict[str, Any] = orjson.loads(incoming.data or b"{}")
        except orjson.JSONDecodeError as error:
            text = f"{self.asked.target} sent a frame that cannot be read"
            raise RequestFailed(Decision.INVALID, text) from error
        if headers.FAILURE in incoming.headers:
            self._ended = True
            raise failure_of(incoming, data, self.asked.target, self.asked.message_id)
        mark = FrameMark.read(incoming.headers.get(headers.FRAME, ""))
        if mark is None:
            self._ended = True
            if self._next:
                raise self._differs()
            return [data]  # a reply that is not streamed
        if self._run not in ("", mark.run):
            raise self._differs()
        self._run = mark.run
        self._producer = incoming.headers.get(headers.INSTANCE, "")
        self._next += 1
        self._since_told += len(incoming.data)
        self._ended = headers.END in incoming.headers
        if self._ended:
            self.asked.sending.answered(incoming.headers)
        self._gap_since = None
        return list(data.get("chunks", ()))

    def _look_back(self, incoming: Incoming) -> None:
        """A frame that was read already: a repetition, or another course of the same answer."""
        if headers.FAILURE in incoming.headers:
            self._frames[self._next] = incoming
            return
        mark = FrameMark.read(incoming.headers.get(headers.FRAME, ""))
        if mark is None or mark.run != self._run:
            self.fail(self._differs())

    async def _fetch(self, left: float) -> None:
        try:
            incoming = await self._fetch_stored(self._next, left)
        except (NotSent, NoAnswer, NoResponders):
            self._look = True
            await asyncio.sleep(min(_PAUSE, left))
            return
        if headers.MESSAGE_ID in incoming.headers:
            self.receive(self._next, incoming)
            return
        self._look = False
        if not self._frames:
            return
        now = asyncio.get_running_loop().time()
        self._gap_since = self._gap_since or now
        if now - self._gap_since > LOST_AFTER:
            text = f"frame {self._next} from {self.asked.target} was lost with the broker's memory"
            raise RequestFailed(Decision.UNAVAILABLE, text)
        await asyncio.sleep(min(_PAUSE, left))

    def _too_late(self) -> RequestTimeout:
        asked = self.asked
        what = f"did not end its answer to {asked.message_type!r}" if self._next else "did not answer"
        return RequestTimeout(
            f"{asked.target} {what} within {asked.timeout:g} s (request {asked.message_id})"
        )

    def _differs(self) -> RequestFailed:
        text = f"{self.asked.target} began to answer a second time, and not as before"
        return RequestFailed(Decision.ID_REUSED, text)


class Stream(AsyncIterator[Chunk]):
    """The chunks of a reply as they come: text or JSON objects. What ``agent.stream`` returns.

    Iterate over it once. Leaving the loop early, or the task being cancelled, stops the producer; with
    ``async with`` (or ``aclose``) at once, else when Python lets go of the iteration.
    """

    def __init__(self, reader: Callable[[], Reader]) -> None:
        self._chunks = _chunks(reader)

    def __aiter__(self) -> AsyncIterator[Chunk]:  # noqa: PYI034 - what it returns must not hold it
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Read no more: the producer is stopped, unless it had ended."""
        await self._chunks.aclose()


async def _chunks(make: Callable[[], Reader]) -> AsyncGenerator[Chunk, None]:
    # Holds no reference to its ``Stream``, so that it ends as soon as a loop over it is left.
    reader = make()
    with reader.asked.sending:  # not the current span meanwhile: what the loop does is not part of it
        try:
            await reader.ask()
            while (chunks := await reader.next()) is not None:
                for chunk in chunks:
                    yield chunk
                reader.consumed()
        finally:
            reader.close()


def failure_of(answer: Incoming, data: dict[str, Any], target: str, message_id: str) -> RequestFailed:
    """The error for an answer that says why there will be none."""
    failure = answer.headers[headers.FAILURE]
    decision = Decision(failure) if failure in _DECISIONS else Decision.DEAD
    reason = str(data.get("reason", "")) or "no reason was given"
    return RequestFailed(decision, f"{target} will not answer request {message_id}: {decision}: {reason}")
