"""The streamed replies of one instance: those it reads, and those it writes."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from mas_nats.calls import Calls
from mas_nats.errors import MasError, OutcomeUnknown
from mas_nats.message import AgentMessage
from mas_nats.payload import invalid
from mas_nats.reply_stream import FramedReply
from mas_nats.stream import Asked, Reader
from mas_nats.telemetry.off import UNWATCHED
from mas_nats.telemetry.watching import Sending, Telemetry
from mas_nats.transport import Connection, Incoming
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.subjects import Op

logger = logging.getLogger("mas_nats")

_CALL_TIMEOUT = 10.0
_FETCH_TIMEOUT = 5.0
_REMEMBERED = 1024
"""Streams that were left, to be cancelled again where the first time was lost."""
_CANCEL_AGAIN = 1.0
"""Seconds between two cancellations of one stream."""
_LAST_WORDS = 2.0
"""Seconds that cancellations under way may take when the instance stops."""


@dataclass(slots=True)
class _Left:
    """A stream that is read no more; without what was asked, which may be large."""

    message_id: str
    target: str
    cancelled: float  # when, by the loop's clock


class Streams:
    """Who reads and who writes, by request."""

    def __init__(
        self, connection: Connection, calls: Calls, agent: str, telemetry: Telemetry | None = None
    ) -> None:
        self._connection = connection
        self._telemetry = telemetry
        self._calls = calls
        self._agent = agent
        self._readers: dict[tuple[str, str], Reader] = {}  # instance and correlation
        self._writers: dict[tuple[str, str], FramedReply] = {}  # requester and correlation
        self._left: OrderedDict[tuple[str, str], _Left] = OrderedDict()
        self._telling: dict[Reader, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- reading -------------------------------------------------------------------------------------
    def reader(self, asked: Asked, instance: str) -> Reader:
        """A reader for the answer to what ``instance`` asked."""
        key = instance, correlation(asked.message_id, asked.away)
        if key in self._readers:
            raise invalid(
                "message_id", f"the answer to {asked.message_id!r} is being read already", "Use another id"
            )

        async def fetch(number: int, left: float) -> Incoming:
            subject = subjects.stored_reply(self._agent, *key, number)
            return await self._connection.exchange(subject, b"", None, min(_FETCH_TIMEOUT, left))

        def closed(reader: Reader) -> None:
            if self._readers.get(key) is reader:
                del self._readers[key]
            if reader.unfinished and not asked.away:
                self._cancel(key, asked.message_id, asked.target)

        def tell(producer: str, count: int) -> None:
            self._tell(reader, producer, count)

        reader = self._readers[key] = Reader(asked, fetch=fetch, tell=tell, closed=closed)
        return reader

    def resume(self) -> None:
        """After a reconnect."""
        for reader in tuple(self._readers.values()):
            reader.resume()

    def receive(self, incoming: Incoming) -> None:
        """Anything under ``mas.reply`` for this instance."""
        tokens = incoming.subject.split(".")
        if len(tokens) != 6:
            return
        if tokens[4] == "flow":
            self._flow(tokens[5], incoming)
        elif tokens[5].isdecimal():
            key = tokens[3], tokens[4]
            if (reader := self._readers.get(key)) is not None:
                reader.receive(int(tokens[5]), incoming)
            elif (left := self._left.get(key)) is not None and headers.END not in incoming.headers:
                self._cancel_again(key, left)

    # -- writing -------------------------------------------------------------------------------------
    def writer(
        self,
        message: AgentMessage,
        message_type: str,
        *,
        instance: str,
        max_payload: int,
        now: Callable[[], float],
    ) -> FramedReply:
        """A reply in frames to ``message``."""
        key = message.sender, correlation(message.message_id)

        def closed() -> None:
            if self._writers.get(key) is made:
                del self._writers[key]

        made = self._writers[key] = FramedReply(
            self._calls,
            message,
            message_type,
            instance=instance,
            max_payload=max_payload,
            closed=closed,
            now=now,
            sending=self._sending(message, message_type),
        )
        return made

    def _sending(self, message: AgentMessage, message_type: str) -> Sending:
        if self._telemetry is None:
            return UNWATCHED
        return self._telemetry.sending(
            Op.REPLY, message.sender, message_type, message.reply_id, made_id=True, answers=message
        )

    async def close(self) -> None:
        """The instance stops: readers end, and cancellations under way are waited for."""
        for reader in tuple(self._readers.values()):
            text = "this agent was stopped while it read a streamed reply"
            reader.fail(OutcomeUnknown(reader.asked.message_id, text))
            reader.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_LAST_WORDS)
            for task in late:
                task.cancel()

    # -- inside --------------------------------------------------------------------------------------
    def _flow(self, token: str, incoming: Incoming) -> None:
        try:
            said: dict[str, Any] = orjson.loads(incoming.data)
            writer = self._writers.get((str(said["requester"]), token))
            if writer is None:
                return
            if said.get("cancelled"):
                writer.interrupt("the requester reads no more")
            else:
                writer.read(int(said["read"]))
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: what a reader said cannot be read: %s", self._agent, incoming.subject)

    def _tell(self, reader: Reader, producer: str, count: int) -> None:
        """Say how many frames were read; while one call is under way the newest number waits for it."""
        under_way = reader in self._telling
        self._telling[reader] = count
        if not under_way:
            self._spawn(self._keep_telling(reader, producer))

    async def _keep_telling(self, reader: Reader, producer: str) -> None:
        said = -1
        try:
            while (count := self._telling[reader]) != said:
                said = count
                body = orjson.dumps({"to": producer, "read": count})
                await self._say(Op.FLOW, reader.asked.message_id, reader.asked.target, body)
        finally:
            del self._telling[reader]

    def _cancel(self, key: tuple[str, str], message_id: str, target: str) -> None:
        self._left[key] = _Left(message_id, target, asyncio.get_running_loop().time())
        self._left.move_to_end(key)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        self._spawn(self._say(Op.CANCEL, message_id, target, b"{}"))

    def _cancel_again(self, key: tuple[str, str], left: _Left) -> None:
        """Frames still come: the first time was lost, or there was nobody yet to hear it."""
        if asyncio.get_running_loop().time() - left.cancelled >= _CANCEL_AGAIN:
            self._cancel(key, left.message_id, left.target)

    async def _say(self, op: Op, message_id: str, target: str, body: bytes) -> None:
        fields = {headers.MSG_ID: message_id, headers.TARGET: target, headers.TYPE: op.value}
        try:
            verdict = await self._calls.call(op, body, fields, timeout=_CALL_TIMEOUT)
            if not verdict.ok:
                logger.info("%s: %s of %s: %s", self._agent, op, message_id, verdict.reason)
        except MasError as error:
            logger.info("%s: %s of %s: %s", self._agent, op, message_id, error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
