"""Moves a message from the inbox to the dead letters, repeatable at any point of a crash (DESIGN 5).

First the dead letter is stored (under a dedup id made of the sequence and the decision, since a log that is
made anew gives its sequences once more), then the outcome is recorded in the log, then the message is removed
from the inbox, then a waiting requester is told. What fails on the way leaves the message in the inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from nats.aio.client import Client

from broker_policy.audit.record import Outcome, Report
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.answered import UNANSWERED
from broker_policy.jetstream import (
    NO_ROOM,
    JetStreamError,
    StoredMessage,
    delete_message,
    get_last,
    get_message,
    publish,
)
from broker_policy.printable import printable
from mas_nats.wire import headers, subjects

Record = Callable[[Report], Awaitable[bool]]
TellRequester = Callable[[str, str], Awaitable[None]]
"""Called with the reply token and a reason that holds no payload."""

EXHAUSTED = "EXHAUSTED"
"""The reason of a dead letter that failed as often as it was allowed to."""
AGENT_REMOVED = "AGENT_REMOVED"
"""The reason of a dead letter whose agent is not in the policy any more."""
UNREPORTED = "no report: the agent died or went silent"
"""The error of a dead letter of which no agent said anything."""
KEPT = (
    headers.MESSAGE_ID,
    headers.SENDER,
    headers.TARGET,
    headers.TYPE,
    headers.SENT,
    headers.AUDIT,
    headers.SALT,
    headers.DEADLINE,
    headers.REPLY_TOKEN,
    headers.STREAM,
    headers.TRACEPARENT,
    headers.TRACESTATE,
    headers.REDRIVES,
)
"""The headers of a message that its dead letter has too."""
_AT_ONCE = 32

log = logging.getLogger(__name__)


class Watch(Protocol):
    """Hears what becomes of messages, by their dedup ids: the circuit breaker."""

    async def failed(self, agent: str, dedup: str, /) -> None:
        """A handler of ``agent`` failed, or ``agent`` died of a message."""

    async def inconclusive(self, agent: str, dedup: str, /) -> None:
        """A message will never be handled, for no fault of ``agent``."""


class NoRoom(Exception):
    """The dead letters, or the log, take no more: the message stays where it is and is tried again."""


class NotYours(Exception):
    """The sequence does not lie on the inbox of the agent that reported it."""


class Undertaker:
    """Dead-letters messages of one namespace."""

    def __init__(
        self,
        nc: Client,
        namespace: str,
        *,
        record: Record,
        tell_requester: TellRequester,
        watch: Watch | None = None,
        clock: Milliseconds = wall_clock,
    ) -> None:
        self._nc = nc
        self._clock = clock
        self._namespace = namespace
        self._record = record
        self._tell_requester = tell_requester
        self._watch = watch

    async def find(self, agent: str, sequence: int) -> StoredMessage | None:
        """The message at ``sequence`` of ``agent``'s inbox; None when it is gone.

        Raises:
            NotYours: there is something, but not for ``agent``.

        """
        stored = await get_message(self._nc, subjects.INBOX_STREAM, sequence)
        if stored is not None and stored.subject != subjects.inbox(agent):
            raise NotYours(f"sequence {sequence} is not in the inbox of {agent}")
        return stored

    async def remember(self, sequence: int, error: str) -> None:
        """Keep the last error of a message that will be tried again, for a death without a report.

        Where that fails it is forgotten: it must not keep the report from being taken.
        """
        subject = subjects.kv_key(subjects.ATTEMPTS_BUCKET, str(sequence))
        with contextlib.suppress(*UNANSWERED):
            await publish(self._nc, subject, error.encode(), {}, timeout=1)

    async def last_error(self, sequence: int) -> str:
        """The last error remembered for a message."""
        stream = subjects.kv_stream(subjects.ATTEMPTS_BUCKET)
        subject = subjects.kv_key(subjects.ATTEMPTS_BUCKET, str(sequence))
        with contextlib.suppress(*UNANSWERED):
            if stored := await get_last(self._nc, stream, subject, timeout=1):
                return stored.data.decode(errors="replace")
        return ""

    async def bury(
        self,
        agent: str,
        stored: StoredMessage,
        *,
        reason: str,
        attempt: int,
        error: str,
        failed: bool = False,
    ) -> None:
        """Move ``stored`` to the dead letters. ``failed``: whether that is the agent's doing.

        Raises:
            NoRoom: it could not be stored or recorded, and is still in the inbox.
            JetStreamError, nats.errors.Error: a stream did not answer; call again.

        """
        fields = {name: stored.headers[name] for name in KEPT if name in stored.headers}
        fields |= {
            headers.MSG_ID: f"{self._namespace}.{stored.sequence}.{stored.headers.get(headers.AUDIT, '')}",
            headers.DEAD_REASON: reason,
            headers.DEAD_ATTEMPTS: str(attempt),
            headers.DEAD_ERROR: printable(error, 300),
            headers.DEAD_SEQUENCE: str(stored.sequence),
            headers.DEAD_TIME: str(self._clock()),
        }
        try:
            await publish(self._nc, subjects.dead_letter(agent), stored.data, fields)
        except JetStreamError as refused:
            if refused.code in NO_ROOM:
                raise NoRoom(f"stream {subjects.DLQ_STREAM} is full") from refused
            raise
        report = Report(agent, stored.sequence, Outcome.DEAD, attempt, reason, self._clock())
        if not await self._record(report):
            raise NoRoom(f"stream {subjects.INBOX_STREAM}, the log, is full")
        if self._watch is not None:  # before it is gone, which else would mean that it was handled
            told = self._watch.failed if failed else self._watch.inconclusive
            await told(agent, stored.headers.get(headers.MSG_ID, ""))
        await delete_message(self._nc, subjects.INBOX_STREAM, stored.sequence)
        if token := stored.headers.get(headers.REPLY_TOKEN):
            try:
                await self._tell_requester(token, f"{agent} could not handle the request ({reason})")
            except UNANSWERED as unanswered:  # the requester will see its timeout instead
                log.warning("a requester of %s could not be told: %r", agent, unanswered)


async def for_all(bury: Callable[[StoredMessage], Awaitable[None]], stored: Sequence[StoredMessage]) -> None:
    """Bury some at a time.

    Raises: what the first that failed raised; the others of its time are done or failed, too.
    """
    for first in range(0, len(stored), _AT_ONCE):
        some = (bury(each) for each in stored[first : first + _AT_ONCE])
        for result in await asyncio.gather(*some, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
