"""Reading records from the log, and removing what is projected.

By direct get in the order of the log, without a consumer: nothing to acknowledge, nothing to get stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker_policy.jetstream import JetStreamError, api, get_last, stream_info
from mas_nats.wire import headers, subjects

MAX_BYTES = 8 << 20
BEHIND = 0.1
"""Seconds that one copy of the log may be behind another."""
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of the log."""

    sequence: int
    subject: str
    body: bytes
    fields: dict[str, str]

    @property
    def mac(self) -> str:
        """The MAC of a record, "" when it carries none."""
        return self.fields.get(headers.RECORD_MAC, "")

    @property
    def time(self) -> int:
        """When the server stored it, unix milliseconds."""
        stamp = datetime.fromisoformat(self.fields["Nats-Time-Stamp"])
        return int(stamp.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class End:
    """Where the log ends, and which one it is."""

    sequence: int  # of its last message, removed ones included
    made: int  # when it was made, unix milliseconds: one that is made anew is another


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive messages of one subject pattern, and how many come after them."""

    messages: list[Stored]
    pending: int


async def read(
    nc: Client, first: int, pattern: str = subjects.AUDIT_SUBJECTS, *, most: int, max_bytes: int = MAX_BYTES
) -> Page:
    """Up to ``most`` messages that match ``pattern``, from sequence ``first`` on.

    Raises:
        JetStreamError: the stream refused, or is not there.
        TimeoutError, nats.errors.Error: no answer.

    """
    inbox = nc.new_inbox()
    messages: list[Stored] = []
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def take(message: Msg) -> None:
        fields: dict[str, str] = dict(message.headers or {})
        status = fields.get(headers.STATUS)
        if ended.done():
            return
        if status is None:
            messages.append(
                Stored(int(fields["Nats-Sequence"]), fields["Nats-Subject"], message.data, fields)
            )
        elif status in ("204", "404"):
            ended.set_result(int(fields.get(headers.NUM_PENDING, "0")))
        else:
            ended.set_exception(
                JetStreamError(int(status), f"the log answered a direct get with status {status}")
            )

    subscription = await nc.subscribe(inbox, cb=take)
    try:
        request = {"seq": first, "next_by_subj": pattern, "batch": most, "max_bytes": max_bytes}
        await nc.publish(f"$JS.API.DIRECT.GET.{subjects.INBOX_STREAM}", orjson.dumps(request), reply=inbox)
        async with asyncio.timeout(_TIMEOUT):  # not wait_for: it can swallow a cancellation
            pending = await ended
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
    return Page(messages, pending)


async def remove(nc: Client, pattern: str, last: int) -> int:
    """Remove what matches ``pattern`` up to sequence ``last``; returns how many messages that were."""
    request = {"filter": pattern, "seq": last + 1}
    result = await api(nc, f"STREAM.PURGE.{subjects.INBOX_STREAM}", request)
    return int(result.get("purged", 0))


async def newest_record(nc: Client) -> int:
    """The sequence of the newest record as the leader has it, 0 when there is none. Errors as ``read``."""
    found = await get_last(nc, subjects.INBOX_STREAM, subjects.AUDIT_SUBJECTS)
    return found.sequence if found else 0


async def end(nc: Client) -> End:
    """Where the log ends, as its leader has it."""
    result = await stream_info(nc, subjects.INBOX_STREAM)
    made = datetime.fromisoformat(result["created"]).timestamp()
    return End(int(result["state"]["last_seq"]), int(made * 1000))


async def last_sequence(nc: Client) -> int:
    """The sequence of the log's last message, removed ones included."""
    return (await end(nc)).sequence
