"""A standing pull: messages keep coming as long as there is room for them.

nats-py fetches batch by batch. This keeps requests open at the consumer, asks for more when half of the room
is free, and starts over whenever the server ends a request, falls silent or comes back, so that delivery
never ends without anybody noticing (fault 15 of the ancestor).

Source: ADR-13 of NATS (pull requests and their status codes).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import orjson

from mas_nats.transport import Connection, Incoming, NotSent, Subscription
from mas_nats.wire.headers import PENDING_MESSAGES

logger = logging.getLogger("mas_nats")

EXPIRES = 30.0
"""Seconds a request stays open; under the export's response threshold of 60."""
HEARTBEAT = 5.0
"""Seconds between the server's signs of life on an idle request."""
_MISSED = 2.5
"""Heartbeats without a sign of life after which the requests are taken for lost."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds before asking again after an error; doubles."""

_LAST_WORD = 1.0
"""Seconds to wait for the server to know of every request, before the inbox is left."""

_IDLE = "100"
_ENDED_WELL = frozenset({"404", "408"})


@dataclass(slots=True)
class _Request:
    batch: int
    expires: float


class StandingPull:
    """Keeps messages coming from one consumer.

    ``receive`` gets each message; ``room`` says how many messages may be on their way or being handled,
    ``busy`` how many are being handled. ``anew`` is called where deliveries may not follow one another: the
    consumer, its server or the connection may be another one from here on.
    """

    def __init__(
        self,
        connection: Connection,
        subject: str,
        receive: Callable[[Incoming], None],
        *,
        room: Callable[[], int],
        busy: Callable[[], int],
        anew: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._receive = receive
        self._room = room
        self._busy = busy
        self._anew = anew
        self._prefix = ""
        self._current = ""  # the prefix whose deliveries follow one another; none after a loss
        self._lost = False  # and not asked anew since
        self._numbers = count(1)
        self._requests: dict[str, _Request] = {}
        self._coming = 0
        self._sign_of_life = 0.0
        self._time = time.monotonic  # that of the loop, as soon as there is one
        self._pause = _FIRST_PAUSE
        self._subscription: Subscription | None = None
        self._asking = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.Handle | None = None  # for room
        self._not_before = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._last_word: tuple[str, asyncio.Event] | None = None

    async def start(self) -> None:
        """Begin to ask."""
        await self._subscribe()
        self._tasks = [asyncio.create_task(self._ask()), asyncio.create_task(self._watch())]
        self.more()

    async def stop(self) -> None:
        """Stop asking, and return when everything the server had sent was received."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await self.pause()

    async def pause(self) -> None:
        """Let nothing be on its way: before a planned reconnect."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._until_all_are_known()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(subscription.drain(), HEARTBEAT)

    async def _until_all_are_known(self) -> None:
        """Wait until the consumer has taken note of every request.

        The server looks up whose inbox a request names when its consumer reads the request. If the inbox was
        left before that, it takes the request for one of somebody who listens, until it expires, and gives it
        messages that nobody gets (nats-server 2.15.1, requests from another account). A consumer reads its
        requests in their order; this one takes no message, and is answered at once.

        It does not help where another node leads the consumer: that one never sees whose inbox it is, and
        nothing takes a request back but that one stepping down (ADR 48).
        """
        number = str(next(self._numbers))
        answered = asyncio.Event()
        self._last_word = (f"{self._prefix}.{number}", answered)
        nothing = orjson.dumps({"batch": 1, "no_wait": True, "max_bytes": 1})
        with contextlib.suppress(NotSent, TimeoutError):
            await self._connection.publish(self._subject, nothing, reply=self._last_word[0])
            await asyncio.wait_for(answered.wait(), _LAST_WORD)
        self._last_word = None

    def lost(self) -> None:
        """The connection is lost: what still comes is left of it, or was asked for through it.

        Until ``restart`` nothing is asked for: the next connection would send it just before its inbox is
        left, which a consumer that is led by another node does not see.
        """
        self._lost = True
        self._current = ""
        self._anew()

    async def restart(self) -> None:
        """Ask anew: after a reconnect, or when the server fell silent."""
        self._lost = False
        await self.pause()
        if not self._tasks:
            return
        await self._subscribe()
        if not self._tasks:
            await self.pause()
            return
        self._not_before = 0.0
        self.more()

    def more(self) -> None:
        """There may be room again: looked at once, however many say so in one turn of the loop."""
        if self._look is None and not self._loop.is_closed():  # closed: a handler was left behind
            self._look = self._loop.call_soon(self._look_for_room)

    def _look_for_room(self) -> None:
        self._look = None
        room = self._room()
        free = room - self._busy() - self._coming
        if free > 0 and (self._coming <= 0 or free * 2 >= room):
            self._asking.set()

    async def _subscribe(self) -> None:
        # A new inbox each time, so that what is left of older requests cannot answer to it.
        self._prefix = self._current = f"_INBOX.{secrets.token_hex(11)}"
        self._requests.clear()
        self._anew()
        self._coming = 0
        self._time = asyncio.get_running_loop().time
        self._sign_of_life = self._time()
        self._subscription = await self._connection.subscribe(
            f"{self._prefix}.*", functools.partial(self._received, self._prefix)
        )

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._asking.wait()
            if (early := self._not_before - loop.time()) > 0:
                await asyncio.sleep(early)
            self._asking.clear()
            self._forget_expired(loop.time())
            free = self._room() - self._busy() - self._coming
            if free <= 0 or self._subscription is None or self._lost:
                continue
            number = str(next(self._numbers))
            if not self._requests:
                self._sign_of_life = loop.time()
            self._requests[number] = _Request(free, loop.time() + EXPIRES)
            self._coming += free
            request = {"batch": free, "expires": _nanos(EXPIRES), "idle_heartbeat": _nanos(HEARTBEAT)}
            try:
                await self._connection.publish(
                    self._subject, orjson.dumps(request), reply=f"{self._prefix}.{number}"
                )
            except NotSent:
                self._ended(number, None)
                self._back_off()

    def _received(self, prefix: str, message: Incoming) -> None:
        self._sign_of_life = self._time()
        if message.data or not (status := message.status):
            self._pause = _FIRST_PAUSE
            self._count_one()
            self._receive(message)
            if prefix != self._current:
                self._anew()
            if self._coming <= 0:  # else what came is in hand now, and leaves as much room as before
                self.more()
            return
        if status == _IDLE:
            return
        if self._last_word is not None and message.subject == self._last_word[0]:
            self._last_word[1].set()
            return
        self._ended(message.subject.rpartition(".")[2], message.headers.get(PENDING_MESSAGES))
        if status not in _ENDED_WELL:
            logger.info("pull: %s %s", status, message.headers.get("Description", ""))
            self._anew()
            self._back_off()
        self.more()

    def _count_one(self) -> None:
        # Which request a message answers is not told; the sum is exact, the parts are close.
        if self._coming > 0:
            self._coming -= 1
        for number, request in self._requests.items():
            request.batch -= 1
            if request.batch <= 0:
                del self._requests[number]
            break

    def _ended(self, number: str, pending: str | None) -> None:
        request = self._requests.pop(number, None)
        left = request.batch if request else 0
        if pending and pending.isdecimal():
            left = int(pending)
        self._coming = max(0, self._coming - left) if self._requests else 0

    def _forget_expired(self, now: float) -> None:
        for number in [n for n, request in self._requests.items() if request.expires + HEARTBEAT < now]:
            del self._requests[number]
        if not self._requests:
            self._coming = 0

    def _back_off(self) -> None:
        self._not_before = asyncio.get_running_loop().time() + self._pause
        self._pause = min(_LONGEST_PAUSE, self._pause * 2)
        self.more()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT)
            self._forget_expired(loop.time())
            if self._lost:
                continue  # the next connection restarts it
            if self._subscription is None:
                await self.restart()  # a planned reconnect that did not come about
            elif self._coming > 0 and loop.time() - self._sign_of_life > _MISSED * HEARTBEAT:
                # The silence may be ours (a handler blocked the loop): read what is waiting first.
                flushed = await self._connection.flush()
                await asyncio.sleep(0)
                if flushed and loop.time() - self._sign_of_life > _MISSED * HEARTBEAT:
                    logger.warning("pull: no sign of life, asking anew")
                    await self.restart()
            self.more()


def _nanos(seconds: float) -> int:
    return int(seconds * 1e9)
