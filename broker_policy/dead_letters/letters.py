"""Dead letters as they lie in their stream: one, or those that a filter wants, in their order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from broker_policy.jetstream import StoredMessage, api, direct_get_page, get_message
from mas_nats.wire import headers, subjects

_PAGE = 256
_PAGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. The body stays out of ``repr``, so that a logged one does not leak it."""

    sequence: int  # in the stream of dead letters
    agent: str  # whose inbox it lay in
    fields: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, stored: StoredMessage) -> Letter:
        """Read a stored message."""
        return cls(stored.sequence, stored.subject.rpartition(".")[2], stored.headers, stored.data)

    def text(self, name: str) -> str:
        """A header; "" when there is none."""
        return self.fields.get(name, "")

    def number(self, name: str) -> int:
        """A header that is a number; 0 when it is none."""
        value = self.fields.get(name, "")
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else 0

    def row(self) -> dict[str, Any]:
        """As JSON, without its body."""
        return {
            "sequence": self.sequence,
            "agent": self.agent,
            "sender": self.text(headers.SENDER),
            "type": self.text(headers.TYPE),
            "message_id": self.text(headers.MESSAGE_ID),
            "reason": self.text(headers.DEAD_REASON),
            "attempts": self.number(headers.DEAD_ATTEMPTS),
            "error": self.text(headers.DEAD_ERROR),
            "died": self.number(headers.DEAD_TIME),
            "sent": self.number(headers.SENT),
            "request": headers.REPLY_TOKEN in self.fields,
            "redrives": self.number(headers.REDRIVES),
            "inbox_sequence": self.number(headers.DEAD_SEQUENCE),
            "audit": self.text(headers.AUDIT),
            "size": len(self.body),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters; what is empty excludes none."""

    agent: str = ""
    reason: str = ""
    sender: str = ""
    type: str = ""
    since: int = 0  # died at or after, unix milliseconds
    after: int = 0  # with a higher sequence

    def matches(self, letter: Letter) -> bool:
        """Whether ``letter`` is wanted."""
        asked = (
            (self.reason, headers.DEAD_REASON),
            (self.sender, headers.SENDER),
            (self.type, headers.TYPE),
        )
        if any(value and letter.text(name) != value for value, name in asked):
            return False
        return letter.number(headers.DEAD_TIME) >= self.since


async def find(nc: Client, sequence: int) -> Letter | None:
    """The dead letter at ``sequence``; None when there is none (any more).

    Raises:
        JetStreamError, nats.errors.Error: no stream, or no answer.

    """
    stored = await get_message(nc, subjects.DLQ_STREAM, sequence)
    return None if stored is None else Letter.of(stored)


async def last_sequence(nc: Client) -> int:
    """The sequence of the newest dead letter, removed ones included. What dies later has a higher one."""
    info = await api(nc, f"STREAM.INFO.{subjects.DLQ_STREAM}", {})
    return int(info["state"]["last_seq"])


async def letters(nc: Client, wanted: Wanted, *, until: int | None = None) -> AsyncIterator[Letter]:
    """Dead letters that match ``wanted``, up to sequence ``until`` (the newest there is now).

    Raises:
        JetStreamError, nats.errors.Error: no stream, or no answer.

    """
    last = await last_sequence(nc) if until is None else until
    pattern = subjects.dead_letter(wanted.agent or "*")
    first = wanted.after + 1
    while first <= last:
        page = await direct_get_page(
            nc, subjects.DLQ_STREAM, pattern, first, batch=_PAGE, max_bytes=_PAGE_BYTES
        )
        for stored in page:
            if stored.sequence > last:
                return
            letter = Letter.of(stored)
            if wanted.matches(letter):
                yield letter
        if not page:
            return
        first = page[-1].sequence + 1
