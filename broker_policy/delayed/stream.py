"""The stream that holds delayed messages: one for each sender and id, until it is due or cancelled."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from nats.aio.client import Client

from broker_policy.bytes_held import BytesHeld
from broker_policy.commit.answered import MaybeStored, publish_until_answered
from broker_policy.delayed.claims import Claims, For, content_of
from broker_policy.jetstream import (
    NO_ROOM,
    JetStreamError,
    StoredMessage,
    count_by_subject,
    delete_message,
    get_last,
    get_message,
    stream_info,
    subject_full,
)
from mas_nats.policy.shares import most_for_one
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation

COUNT_EVERY = 0.5
"""Seconds between two counts of one sender's messages. By what other workers take meanwhile, and no more, a
sender can exceed its limit; by what it has stored meanwhile, the bytes that it may hold."""
_SENDERS = 10_000
_PATIENCE = 20.0
"""Seconds for which a publish that is not answered is repeated: less than its sender waits."""


class Held(Enum):
    """What came of a message to hold."""

    STORED = 1
    KNOWN = 2  # the same waits already, or was released
    OTHER = 3  # another waits, or was released, under this id
    TOO_MANY = 4  # of this sender
    TOO_LARGE = 5  # together, those of this sender
    NO_ROOM = 6  # for anybody


@dataclass(slots=True)
class _Count:
    """The messages of one sender."""

    stored: int = 0  # when they were counted, and since then
    counted: float = -math.inf  # when that was
    storing: Counter[str] = field(default_factory=Counter)  # on their way into the stream, by token
    large: bool = False  # they hold more bytes than are left for all other senders
    counting: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody who uses it waits."""
        return bool(self.storing or self.counting)


class DelayedStream:
    """The delayed messages of one namespace."""

    def __init__(
        self,
        nc: Client,
        *,
        clock: Callable[[], float] = time.monotonic,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._nc = nc
        self._clock = clock
        self._held = BytesHeld(workers)
        self.claims = Claims(nc)
        self._most: int | None = None
        self._looked = -math.inf
        self._counts: dict[str, _Count] = {}  # by sender

    @property
    def scarce(self) -> bool:
        """Whether so much room is taken that it matters by whom."""
        return self._most is not None

    async def hold(
        self, sender: str, message_id: str, body: bytes, fields: dict[str, str], most: int
    ) -> Held:
        """Store a message, unless its id is in use, or ``most`` of its sender wait or hold too many bytes.

        An id is in use while something waits under it, and ``REMEMBERED`` seconds after its release began.

        Raises:
            JetStreamError, nats.errors.Error, LogUnreachable: no answer, or none that was expected.

        """
        token = correlation(message_id)
        subject = subjects.delayed(sender, token)
        count = await self._counted(sender)
        repeated = token in count.storing  # takes no room of its own
        too_many = count.stored + len(count.storing) >= most
        if not repeated and (too_many or count.large):
            return (
                await self._compare(subject, body, fields)
                or await self._released(sender, token, body, fields)
                or (Held.TOO_MANY if too_many else Held.TOO_LARGE)
            )
        count.storing[token] += 1  # before anything is waited for, so that those that come now see it
        held: Held | None = None
        try:
            held = await self._store(sender, token, body, fields)
        finally:
            count.storing[token] -= 1
            if not count.storing[token]:
                del count.storing[token]
            if held in (None, Held.STORED):  # without an answer it may be: the next count says so
                count.stored += 1
                self._held.stored(sender, len(body))
        return held

    async def _store(self, sender: str, token: str, body: bytes, fields: dict[str, str]) -> Held:
        """Store a message for which there is room; returns and raises as ``hold``."""
        subject = subjects.delayed(sender, token)
        # A try that was not answered may be stored and cancelled since: repeated, it must not be held anew.
        named = {**fields, headers.MSG_ID: fields[headers.AUDIT]}
        try:
            ack = await publish_until_answered(self._nc, subject, body, named, patience=_PATIENCE)
        except (JetStreamError, MaybeStored) as error:
            refused = error.__cause__ if isinstance(error, MaybeStored) else error
            if not isinstance(refused, JetStreamError) or refused.code not in NO_ROOM:
                raise
            if there := await self._compare(subject, body, fields):
                return there
            if released := await self._released(sender, token, body, fields):
                return released
            if not subject_full(refused):
                return Held.NO_ROOM
            raise  # what was in the way was cancelled meanwhile
        # Asked afterwards, so that nothing is released between the question and the publish.
        if released := await self._released(sender, token, body, fields, before=ack.sequence):
            await self.remove(ack.sequence)
            return released
        return Held.STORED

    async def get(self, sequence: int) -> StoredMessage | None:
        """The message at ``sequence``; None when it was released or cancelled."""
        return await get_message(self._nc, subjects.DELAYED_STREAM, sequence)

    async def cancel(self, sender: str, message_id: str) -> bool:
        """Take a message back; False when it is not there, or is being released.

        Raises: as ``hold``.
        """
        token = correlation(message_id)
        stored = await get_last(self._nc, subjects.DELAYED_STREAM, subjects.delayed(sender, token))
        if stored is None:  # a repetition of a cancellation is told the same
            claim = await self.claims.find(sender, token)
            return claim is not None and claim.what is For.CANCEL
        claim = await self.claims.claim(sender, token, stored.sequence, For.CANCEL)
        if claim is None or claim.what is not For.CANCEL:
            return False
        await self.remove(stored.sequence)
        return True

    async def remove(self, sequence: int) -> None:
        """Remove a message that was released, cancelled or buried."""
        await delete_message(self._nc, subjects.DELAYED_STREAM, sequence)

    async def _compare(self, subject: str, body: bytes, fields: dict[str, str]) -> Held | None:
        there = await get_last(self._nc, subjects.DELAYED_STREAM, subject)
        if there is None:
            return None
        if there.headers.get(headers.AUDIT) == fields[headers.AUDIT]:
            return Held.STORED  # by a try of ours that was not answered
        same = there.data == body and all(
            there.headers.get(name) == fields[name] for name in (headers.TARGET, headers.TYPE)
        )
        return Held.KNOWN if same else Held.OTHER

    async def _released(
        self, sender: str, token: str, body: bytes, fields: dict[str, str], before: int | None = None
    ) -> Held | None:
        """What a release under this id that began lately, of a message ``before`` this one, makes of it."""
        claim = await self.claims.find(sender, token)
        if claim is None or claim.what is not For.RELEASE or (before and claim.message >= before):
            return None
        same = claim.content == content_of(fields[headers.TARGET], fields[headers.TYPE], body)
        return Held.KNOWN if same else Held.OTHER

    async def _counted(self, sender: str) -> _Count:
        """What is known of ``sender``, counted lately: once for all who ask at the same moment."""
        count = self._counts.get(sender)
        if count is None:
            if len(self._counts) >= _SENDERS:
                self._counts = {name: each for name, each in self._counts.items() if each.busy}
            count = self._counts[sender] = _Count()
        if count.counting is None and self._clock() - count.counted >= COUNT_EVERY:
            count.counting = asyncio.create_task(self._count(sender, count))
        if count.counting is not None:
            await asyncio.shield(count.counting)
        return count

    async def _count(self, sender: str, count: _Count) -> None:
        now, before = self._clock(), count.stored
        try:
            pattern = subjects.delayed(sender)
            counting = count_by_subject(self._nc, subjects.DELAYED_STREAM, pattern)
            found, most = await asyncio.gather(counting, self._most_for_one())
        finally:
            count.counting = None
        # What was stored meanwhile may be counted twice until the next time: rather than not at all.
        count.stored = found + count.stored - before
        count.large = most is not None and self._held.of(sender, found) > most
        count.counted = now

    async def _most_for_one(self) -> int | None:
        """Bytes that one sender may hold, looked up lately by any of them."""
        now = self._clock()
        if now - self._looked < COUNT_EVERY:
            return self._most
        stream = await stream_info(self._nc, subjects.DELAYED_STREAM)
        limit = int(stream["config"]["max_bytes"])
        self._held.reach(limit)
        self._most, self._looked = most_for_one(int(stream["state"]["bytes"]), limit), now
        return self._most
