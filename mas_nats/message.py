"""A message as a handler, or a requester, sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol

from pydantic import BaseModel

from mas_nats.wire import headers

_EPOCH = datetime.fromtimestamp(0, UTC)

Payload = Mapping[str, object] | BaseModel
"""What can be sent: a JSON object, as a mapping or as a model."""


@dataclass(frozen=True, slots=True)
class ReplyResult:
    """What became of a reply. None of these is an error: an honest handler may be run again, or be slow."""

    delivered: bool  # it reached, or will reach, the requester
    duplicate: bool = False  # this request was answered before; the first answer counts
    late: bool = False  # the requester no longer waits


class ReplyWriter(Protocol):
    """What ``message.reply_stream()`` gives to the block."""

    async def write(self, chunk: str | Payload) -> None:
        """Add text, or a JSON object or model, to the reply.

        Waits while the reader, or the policy service, is behind.

        Raises:
            StreamCancelled: nobody reads any more.
            InvalidMessage: it is neither text nor a JSON object, or too large.
            Refused, Unavailable, OutcomeUnknown: what was written before could not be delivered.

        """


@dataclass(init=False)
class Course:
    """What the SDK remembers of one delivery.

    ``told``: the requester knows that there will be no reply. ``acknowledged``: it is not delivered again,
    whatever becomes of its handler.
    """

    told: bool = False
    acknowledged: bool = False
    trace: Any = None  # of its handler, where it is traced


class Replier(Protocol):
    """Whatever can carry a reply back."""

    def reply_stream(
        self, message: AgentMessage, message_type: str
    ) -> AbstractAsyncContextManager[ReplyWriter]:
        """Answer ``message`` in parts."""

    async def reply(self, message: AgentMessage, message_type: str, data: Payload) -> ReplyResult:
        """Answer ``message``."""


@dataclass(frozen=True, slots=True)
class AgentMessage:
    """A delivery to a handler, or the reply to a request.

    ``message_id`` is the sender's and the same on every delivery: use it to recognise a repetition.
    The payload stays out of ``repr``, so that a logged message does not leak it.

    The audit holds a commitment to what was delivered, which says nothing without ``salt``. Keep ``body`` and
    ``salt``, and ``mas audit check-commitment`` proves later that this is what was delivered.
    """

    message_id: str
    sender: str
    target: str
    message_type: str
    data: dict[str, Any] = field(repr=False)
    sent_at: datetime
    deadline: datetime | None = None  # set on requests: until when the requester waits
    attempt: int = 1  # 1 for the first delivery
    audit: str = ""  # the decision that let it pass: <writer>.<record>.<position>
    reply_token: str = field(default="", repr=False)
    streams: bool = False  # the requester takes its reply in frames
    body: bytes = field(default=b"", repr=False)  # ``data`` as it was delivered, byte for byte
    salt: str = field(default="", repr=False)  # hexadecimal; "" where no single decision covers the whole
    _replier: Replier | None = field(default=None, repr=False, compare=False)
    course: Course = field(default_factory=Course, repr=False, compare=False)
    _acknowledge: Callable[[], Awaitable[None]] | None = field(default=None, repr=False, compare=False)

    @property
    def expects_reply(self) -> bool:
        """Whether somebody waits for ``reply``."""
        return bool(self.reply_token)

    @property
    def reply_id(self) -> str:
        """The id of the reply to this message: the same however often it is handled."""
        return reply_id(self.sender, self.target, self.message_id)

    async def acknowledge(self) -> None:
        """Acknowledge now instead of when the handler has ended: for work that must not be done twice.

        When it returns, the broker has confirmed that the message is not delivered again, whatever becomes of
        the handler: what goes wrong from here on is tried no second time, makes no dead letter and counts for
        no circuit; the audit says ``handled``. A handler that dies leaves its requester without a reply.

        Raises:
            Unavailable: the broker is away; the message will be delivered again. Let it pass.
            OutcomeUnknown: the broker did not confirm it in time. Let it pass, and do nothing that must not
                be done twice.

        """
        if self._acknowledge is None:
            raise RuntimeError("this message did not come from a running agent: it cannot be acknowledged")
        if not self.course.acknowledged:
            await self._acknowledge()
            self.course.acknowledged = True

    async def reply(self, message_type: str, data: Payload) -> ReplyResult:
        """Answer this request.

        Raises:
            InvalidMessage: nobody waits (it was sent, not requested), or the data cannot be sent.
            Refused: policy said no; another reply may follow.
            Unavailable, OutcomeUnknown: repeating is safe, the requester gets one reply.

        """
        return await self._answering().reply(self, message_type, data)

    def reply_stream(self, message_type: str = "stream") -> AbstractAsyncContextManager[ReplyWriter]:
        """Answer this request in parts, as they are made.

            async with message.reply_stream() as out:
                async for token in model.generate(...):
                    await out.write(token)

        Leaving the block marks the end. An exception ends the stream with a failure, once something was sent:
        the requester sees ``RequestFailed``, and the message is dead-lettered, not tried again. Before that
        it is a failed attempt like any other.

        When the requester leaves or its timeout passes, the block is cancelled, as ``asyncio.timeout`` does
        it, and raises ``StreamCancelled``; let that pass, and the message is acknowledged.

        A requester that used ``request`` gets one reply at the end: the one object that was written, else
        ``{"text": ...}``, else ``{"chunks": [...]}``.

        Raises:
            InvalidMessage: nobody waits: it was sent, not requested.

        """
        return self._answering().reply_stream(self, message_type)

    def _answering(self) -> Replier:
        if self._replier is None:
            raise RuntimeError("this message did not come from a running agent: it cannot be answered")
        return self._replier


class _Unfrozen:
    """An ``AgentMessage`` while it is read: setting the fields of a frozen one takes three times as long."""

    __slots__ = AgentMessage.__slots__


def read_message(
    fields: Mapping[str, str],
    data: dict[str, Any],
    *,
    target: str,
    attempt: int = 1,
    replier: Replier | None = None,
    body: bytes = b"",
    acknowledge: Callable[[], Awaitable[None]] | None = None,
) -> AgentMessage:
    """Build a message from the headers of a delivery or of a reply."""
    message: Any = _Unfrozen()
    message.message_id = fields.get(headers.MESSAGE_ID, "")
    message.sender = fields.get(headers.SENDER, "")
    message.target = target
    message.message_type = fields.get(headers.TYPE, "")
    message.data = data
    sent, deadline = fields.get(headers.SENT), fields.get(headers.DEADLINE)
    message.sent_at = _time(sent) if sent else _EPOCH
    message.deadline = _time(deadline) if deadline else None
    message.attempt = attempt
    message.audit = fields.get(headers.AUDIT, "")
    message.reply_token = fields.get(headers.REPLY_TOKEN, "")
    message.streams = fields.get(headers.STREAM) == "1"
    message.body = body
    message.salt = fields.get(headers.SALT, "")
    message._replier = replier  # noqa: SLF001 - of the message that is made here, as below
    message.course = Course()
    message._acknowledge = acknowledge  # noqa: SLF001
    message.__class__ = AgentMessage
    read: AgentMessage = message
    return read


@lru_cache(maxsize=256)
def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def reply_id(sender: str, target: str, message_id: str) -> str:
    """The id of the reply of ``target`` to the message ``message_id`` of ``sender``."""
    return sha256(f"reply\n{sender}\n{target}\n{message_id}".encode()).hexdigest()[:32]
