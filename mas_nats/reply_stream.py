"""A reply in frames, as the handler that writes it sees it (ADR 12)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import orjson

from mas_nats.calls import Calls
from mas_nats.errors import MasError, StreamCancelled, Unavailable, error_of
from mas_nats.interruptible import Interruptible
from mas_nats.message import AgentMessage, Payload
from mas_nats.payload import encode, invalid, size_of_text
from mas_nats.pending import Pending, size_of
from mas_nats.telemetry.watching import Sending
from mas_nats.wire import headers
from mas_nats.wire.frames import FRAME_BYTES, WINDOW_BYTES, WINDOW_FRAMES, Chunk, joined, units
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

logger = logging.getLogger("mas_nats")

COALESCE = 0.02
"""Seconds between two frames, unless one is full before (DESIGN 5)."""
BUFFER = 4 * FRAME_BYTES
"""Bytes that ``write`` takes before it waits for what was written to be on its way."""
STALLED = 60.0
"""Seconds that a reader who has as much as may be on its way can take before it reads on."""
_CALL_TIMEOUT = 30.0
_PAUSE = 0.25
"""Seconds between two looks for a worker where there is none."""


class FramedReply:
    """Sends what is written as numbered frames: one at a time, each with the cursor the last one gave."""

    def __init__(
        self,
        calls: Calls,
        message: AgentMessage,
        message_type: str,
        *,
        instance: str,
        max_payload: int,
        closed: Callable[[], None],
        now: Callable[[], float],
        sending: Sending,
    ) -> None:
        self._now = now  # unix time, in seconds
        self._sending = sending
        self._calls = calls
        self._message = message
        self._type = message_type
        self._instance = instance
        self._max_payload = max_payload
        self._closed = closed
        self._pending = Pending()
        self._cursor = ""
        self._number = 0
        self._told = 0  # frames that the reader says it has read
        self._read = 0  # those of them that are frames of this attempt
        self._unread: deque[int] = deque()  # bytes of each frame sent since
        self._short = 0  # units that the next frame must hold at least, to be compared with an earlier one
        self._final = False
        self._halted = False  # the block has failed: nothing more is sent
        self._done = False  # the requester has the end already: what is written goes nowhere, and is no error
        self._error: Exception | None = None
        self._changed = asyncio.Event()  # something for the sender to look at
        self._moved = asyncio.Event()  # something for a waiting writer to look at
        self._block = Interruptible()
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- the block -------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        self._sending.__enter__()
        self._block.enter()
        self._sender = asyncio.create_task(self._send())
        if (deadline := self._message.deadline) is not None:
            left = deadline.timestamp() - self._now()
            self._timer = asyncio.get_running_loop().call_later(
                left, self.interrupt, "the requester has stopped waiting"
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = error
        try:
            await self._leave(kind)
        except BaseException as late:
            failed = late
            raise
        finally:
            self._sending.__exit__(type(failed) if failed is not None else None, failed, trace)

    async def _leave(self, kind: type[BaseException] | None) -> None:
        try:
            if kind is None and not self._block.reason:
                await self._finish_or_tell()
            elif kind is not None and issubclass(kind, Exception) and not issubclass(kind, StreamCancelled):
                await self._tell_failure(kind)
        except asyncio.CancelledError:
            self._block.leave(asyncio.CancelledError)
            raise
        finally:
            self._closed()
            if self._timer is not None:
                self._timer.cancel()
            if self._sender is not None:
                self._sender.cancel()
        self._block.leave(kind)

    async def write(self, chunk: str | Payload) -> None:
        """Add a chunk; see ``message.ReplyWriter``."""
        taken, size = self._checked(chunk)
        self._raise()
        if self._done or not size:
            return
        self._pending.add(taken, size)
        self._changed.set()
        while self._pending.size >= BUFFER and not self._done:
            self._moved.clear()
            await self._moved.wait()
            self._raise()

    # -- what the reader says ---------------------------------------------------------------------------
    def read(self, count: int) -> None:
        """The reader has read ``count`` frames."""
        self._told = max(self._told, count)
        while self._read < min(self._told, self._number):
            self._unread.popleft()
            self._read += 1
        self._changed.set()

    def interrupt(self, reason: str) -> None:
        """Nobody reads any more: end the block, and whatever is written."""
        self._fail(StreamCancelled(reason))
        self._block.interrupt(reason)

    # -- sending ---------------------------------------------------------------------------------------
    def _checked(self, chunk: str | Payload) -> tuple[Chunk, int]:
        if isinstance(chunk, str):
            return chunk, size_of_text(chunk)
        body = encode(chunk)
        if len(body) + FRAME_BYTES > self._max_payload:
            raise invalid(
                "max_payload",
                f"the chunk has {len(body)} bytes, the limit is {self._max_payload - FRAME_BYTES}",
                "Write it in parts",
                Decision.TOO_LARGE,
            )
        return orjson.loads(body), len(body)

    async def _finish(self) -> None:
        """Send what is left, with the end marked."""
        self._final = True
        self._changed.set()
        while not self._done:
            self._raise()
            self._moved.clear()
            await self._moved.wait()

    async def _finish_or_tell(self) -> None:
        """Send what is left; where that fails and the message is not delivered again, nobody else tells."""
        try:
            await self._finish()
        except MasError as error:
            if self._message.course.acknowledged and not isinstance(error, StreamCancelled):
                await self._tell_failure(type(error))
            raise

    async def _tell_failure(self, kind: type[BaseException]) -> None:
        """Tell the reader, where it has something already, that the rest will not come."""
        if self._sender is not None:
            self._halted = True
            self._changed.set()
            await asyncio.wait({self._sender})  # what is on its way may arrive
        if self._done or not self._number or isinstance(self._error, StreamCancelled):
            return
        try:
            while not self._done:
                await self._frame([], failed=kind.__name__)
        except StreamCancelled:
            self._message.course.told = True
        except MasError as error:
            logger.warning("a reader could not be told that its stream failed: %s", error)
        else:
            self._message.course.told = True

    async def _send(self) -> None:
        """Send frames until the end; at most one at a time, since each needs the cursor of the last."""
        loop = asyncio.get_running_loop()
        not_before = 0.0
        try:
            while not (self._done or self._halted):
                if self._behind:
                    await self._room()
                elif self._due(rested=loop.time() >= not_before):
                    not_before = loop.time() + COALESCE
                    await self._frame(self._pending.head(self._short))
                else:
                    await self._change(not_before if loop.time() < not_before else None)
        except StreamCancelled as error:
            self.interrupt(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, who writes must learn of it
            self._fail(error)

    @property
    def _behind(self) -> bool:
        """Whether the reader has to read before there may be more."""
        return self._number - self._read >= WINDOW_FRAMES or sum(self._unread) >= WINDOW_BYTES

    async def _room(self) -> None:
        """Wait until the reader has read some.

        Raises:
            StreamCancelled: it has read nothing for ``STALLED`` seconds, and is told so.

        """
        end = asyncio.get_running_loop().time() + STALLED
        while self._behind and not self._halted:
            if asyncio.get_running_loop().time() >= end:
                await self._frame([], failed="ReaderStalled")
                raise StreamCancelled(f"its reader has read nothing for {STALLED:g} s")
            await self._change(end)

    async def _change(self, until: float | None) -> None:
        """Wait until something happens, or ``until`` by the loop's clock."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._changed.wait()

    def _due(self, *, rested: bool) -> bool:
        """Whether there is a frame to send now."""
        if self._final:
            return True
        if self._short:
            return self._pending.units >= self._short
        return self._pending.size >= FRAME_BYTES or (rested and self._pending.size > 0)

    async def _frame(self, chunks: list[Chunk], *, failed: str = "") -> None:
        count = units(chunks)
        final = self._final and not failed and count == self._pending.units
        body = orjson.dumps(
            {"cursor": self._cursor, "chunks": joined(chunks), "final": final, "failed": failed}
        )
        fields = {
            headers.MSG_ID: f"{self._message.reply_id}.{self._number}",
            headers.TYPE: self._type,
            headers.REPLY_TOKEN: self._message.reply_token,
            headers.INSTANCE: self._instance,
            **self._sending.headers,
        }
        verdict = await self._call(body, fields)
        self._answered(verdict, count, sum(map(size_of, chunks)))

    async def _call(self, body: bytes, fields: dict[str, str]) -> Verdict:
        """Ask until somebody takes it: an answer that is half said is not given up for a worker's restart."""
        end = asyncio.get_running_loop().time() + _CALL_TIMEOUT
        while True:
            try:
                return await self._calls.call(Op.FRAME, body, fields, timeout=_CALL_TIMEOUT)
            except Unavailable:
                if asyncio.get_running_loop().time() + _PAUSE >= end:
                    raise
                await asyncio.sleep(_PAUSE)

    def _answered(self, verdict: Verdict, count: int, size: int) -> None:
        if verdict.decision is Decision.REPLY_LATE:
            raise StreamCancelled("the requester has stopped waiting")
        if not verdict.ok:
            # The requester was told of a second attempt that differs; a third one would not help.
            self._message.course.told |= verdict.decision is Decision.ID_REUSED
            raise error_of(verdict)
        if not self._number:
            self._sending.accepted()
        result: Mapping[str, Any] = verdict.result
        if "ended" in result:
            if result["ended"] == "failed" and verdict.duplicate:
                raise StreamCancelled("the requester was told that this answer failed")
            self._done = True
        elif "short" in result:
            self._short = int(result["short"])
        else:
            self._short = 0
            self._cursor = str(result["cursor"])
            self._number += 1
            self._unread.append(size)
            self._pending.drop(int(result.get("taken", count)))
            self.read(self._number if verdict.duplicate else self._told)  # a duplicate needs no room
        self._moved.set()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._moved.set()
        self._changed.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
