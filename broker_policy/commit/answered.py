"""Asking the log until it answers: what is published under a dedup id may be published again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import nats.errors
from nats.aio.client import Client

from broker_policy.jetstream import NO_ROOM, Ack, JetStreamError, publish

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 300.0
"""Seconds after which nobody waits for an answer any more: half the stream's duplicate window, within which
a repeated publish is recognised."""
_T = TypeVar("_T")


class LogUnreachable(Exception):
    """The log did not answer for so long that the worker must end; another begins where it can be reached."""


class MaybeStored(Exception):
    """The stream refused a repetition, but an earlier try, never answered, may be stored or yet arrive."""


class Withheld(Exception):
    """It was not sent, or not again: the stream refused what must come before it."""

    def __init__(self, *, repeated: bool) -> None:
        super().__init__("the log refused what must come before this")
        self.repeated = repeated


UNANSWERED = (nats.errors.Error, JetStreamError, LogUnreachable, MaybeStored, OSError)
"""What a stream that does not answer, or not as it should, looks like."""


async def until_answered(attempt: Callable[[], Awaitable[_T]], patience: float = GIVE_UP_AFTER) -> _T:
    """Repeat ``attempt`` while it gets no answer, for ``patience`` seconds.

    Raises:
        LogUnreachable: there was none.
        nats.errors.MaxPayloadError: it is too large for the server; repeating cannot help.

    """
    started = time.monotonic()
    pause = 0.05
    while True:
        try:
            return await attempt()
        except nats.errors.MaxPayloadError:
            raise
        except (nats.errors.Error, OSError) as error:
            log.warning("the log did not answer (%s), repeating", type(error).__name__)
        if time.monotonic() - started > patience:
            raise LogUnreachable(f"no answer from the log for {patience:.0f} s")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


async def publish_until_answered(
    nc: Client,
    subject: str,
    body: bytes,
    fields: dict[str, str],
    *,
    room: bool = False,
    repeated: bool = False,
    before: Callable[[], Awaitable[None]] | None = None,
    patience: float = GIVE_UP_AFTER,
) -> Ack:
    """Publish under a dedup id until the stream answers; repeating is harmless within its window.

    ``room``: also repeat while the stream is full. ``repeated``: an earlier try was not answered. ``before``:
    what must have happened before each try; it may raise what a try may. ``patience`` is in seconds.

    Raises:
        JetStreamError: the stream refused it; nothing was stored.
        MaybeStored: the stream refused a repetition.
        Withheld: the stream refused what ``before`` had to publish.
        LogUnreachable: no answer for ``patience`` seconds.

    """
    started = time.monotonic()

    async def prepare(before: Callable[[], Awaitable[None]]) -> None:
        try:
            await before()
        except JetStreamError as error:
            raise Withheld(repeated=repeated) from error
        if time.monotonic() - started > patience:  # its dedup id would be forgotten
            raise LogUnreachable(f"what must come before took longer than {patience:.0f} s")

    async def attempt() -> Ack:
        nonlocal repeated
        if before is not None:
            await prepare(before)
        try:
            ack = await publish(nc, subject, body, fields)
        except JetStreamError as error:
            if room and error.code in NO_ROOM:
                raise _NoRoomYet from error
            if repeated:
                raise MaybeStored from error
            raise
        except (nats.errors.Error, OSError):
            repeated = True
            raise
        return replace(ack, repeated=True) if repeated else ack

    return await until_answered(attempt, patience)


class _NoRoomYet(OSError):
    """The stream is full, and the caller waits for room."""
