"""Acknowledging what was handled: by itself, or together with what was handled around it (ADR 37).

nats-server writes and syncs each acknowledgement of a work queue by itself, and asks each consumer about it.
Many messages that lie at the front of an inbox can be taken out of it at once, by the policy service.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable

import orjson

from mas_nats.errors import MasError, PermissionDenied
from mas_nats.session import Terms
from mas_nats.streak import Streak
from mas_nats.transport import Connection, NotSent
from mas_nats.wire import subjects
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import ACK_PENDING, Verdict

logger = logging.getLogger("mas_nats")

ACK = b"+ACK"
LEAST = 32
"""Messages from which on it is worth while to ask for them together."""
GATHERING = 0.01
"""Seconds for which a handled message waits for others."""
LONGEST_GATHERING = 0.05
"""Seconds for which it waits where more come all the time: to ask costs as much as many messages do."""
_ANSWERS = 8
"""How many times as long as the last answer took it may wait, where that is more: a server with thousands of
consumers takes fifteen milliseconds to take something out of an inbox, and stores nothing there meanwhile."""
ENOUGH = 512
"""Messages for which it is not worth while to wait for more."""
_SLOW = 0.0125
"""Seconds that an answer takes at least where it takes long."""
_ENOUGH_SLOW = 768
"""The same where answers take long."""
_TIMEOUT = 2.0
"""Seconds to wait for the policy service, at most; then each message is acknowledged by itself."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0
"""Seconds without asking after it did not work; doubles."""
_MOST = 1024
"""Messages that are gathered; what comes then is acknowledged one by one."""
_BACK = 5.0
"""Seconds after its delay until a message that was given back has come again, or gone to somebody else."""
_STUCK = 60.0
"""Seconds after which a message that was not handled is taken for one that does not come any more."""


class Acknowledgements:
    """What one instance has handled and the broker is to forget.

    Nothing is lost when it is too late or does not arrive: a message that is not acknowledged comes again,
    and is acknowledged then.
    """

    def __init__(self, connection: Connection, agent: str, terms: Callable[[], Terms]) -> None:
        self._connection = connection
        self._agent = agent
        self._terms = terms
        self._streak = Streak()
        self._gathered: dict[int, str] = {}  # where each one would be acknowledged, by sequence
        self._away: dict[int, float] = {}  # given back: until when nothing is asked for, by sequence
        self._timer: asyncio.TimerHandle | None = None
        self._seen, self._until = 0, 0.0  # how many had come by the last look, and the time of the last one
        self._asking: asyncio.Task[None] | None = None
        self._asked: dict[int, str] = {}  # those that it asks for
        self._one_by_one: set[asyncio.Task[None]] = set()
        self._moved = 0.0  # when something at the front of the inbox was handled
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._longest = LONGEST_GATHERING
        self._may_wait = True  # longer than that
        self._closed = False

    def delivered(self, sequence: int, attempt: int, number: int) -> None:
        """A message has come; ``number`` is that of the delivery. In their order, and none left out."""
        self._away.pop(sequence, None)
        self._streak.delivered(sequence, attempt, number)

    async def handled(self, sequence: int, ack_subject: str, *, last: bool) -> None:
        """Acknowledge a message; ``last``: no other one is being handled."""
        if (last and not self._gathered) or not self._together() or not self._streak.handled(sequence):
            self.acknowledged(sequence)
            await self.say(ack_subject, ACK)
            return
        self._gathered[sequence] = ack_subject
        if self._asking is None and self._timer is None:
            self._gather()
        elif self._timer is not None and len(self._gathered) >= self._enough:
            self._leave()
        elif len(self._gathered) >= _MOST:
            self._streak.alone += len(self._streak.take())
            self._say_each(self._taken())

    def acknowledged(self, sequence: int) -> None:
        """A message is acknowledged by itself."""
        self._streak.forget(sequence)

    def replaced(self, sequence: int) -> None:
        """What is delivered under ``sequence`` now is another message, of another log."""
        self._gathered.pop(sequence, None)

    def given_back(self, sequence: int, attempt: int, delay: float) -> None:
        """A message is to come again in ``delay`` seconds; after the last attempt it waits to be buried.

        A consumer that is about to deliver something again forgets that when something is taken out of its
        inbox, and delivers it only after the ack wait. So nothing is, until it has come.
        """
        if attempt >= self._terms().max_deliver:
            self._streak.end()
        else:
            self._away[sequence] = asyncio.get_running_loop().time() + delay + _BACK

    def anew(self) -> None:
        """What is delivered next may come from a server, or a consumer, that does not know all deliveries.

        Its log may be another one, too, in which sequences stand for other messages: nothing may be asked for
        there that was handled here, and what is to be acknowledged by itself is so before anything comes.
        """
        self._streak.end()
        asked, self._asked = self._asked, {}
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._say_each(asked | self._taken())
        self._not_before, self._pause, self._longest = 0.0, _FIRST_PAUSE, LONGEST_GATHERING
        self._may_wait = True

    async def say(self, ack_subject: str, body: bytes) -> None:
        """Say something about one delivery."""
        try:
            await self._connection.publish(ack_subject, body)
        except NotSent as error:
            logger.warning("%s: an acknowledgement was lost: %s", self._agent, error)

    async def close(self) -> None:
        """Acknowledge what is still to be acknowledged."""
        self._closed = True
        self._say_each(self._taken())
        if self._asking is not None:
            await asyncio.wait({self._asking})
        await asyncio.gather(*self._one_by_one)

    @property
    def _enough(self) -> int:
        return ENOUGH if self._longest <= LONGEST_GATHERING else _ENOUGH_SLOW

    def _together(self) -> bool:
        """Whether messages can be acknowledged together at the moment."""
        if self._closed or not self._terms().ack_many:
            return False
        if not self._away and not self._not_before:
            return True
        now = asyncio.get_running_loop().time()
        self._away = {sequence: until for sequence, until in self._away.items() if until > now}
        return not self._away and now >= self._not_before

    def _taken(self) -> dict[int, str]:
        """What was gathered, and nothing is gathered any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, {}
        return gathered

    def _gather(self) -> None:
        """Wait for more."""
        self._seen = 0
        self._until = asyncio.get_running_loop().time() + min(self._longest, self._terms().ack_wait / 20)
        self._look_later(GATHERING)

    def _look_later(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Wait on where many can be taken out together, and more than at the last look; else leave."""
        left = self._until - asyncio.get_running_loop().time()
        ready = self._streak.ready() if left > 0 and self._together() else 0
        if ready >= LEAST and ready > self._seen:
            self._seen = ready
            self._look_later(min(GATHERING, left))
        else:
            self._leave()

    def _leave(self) -> None:
        now = asyncio.get_running_loop().time()
        gathered, since, front = self._taken(), self._streak.since, self._streak.take()
        if front or not self._moved:
            self._moved = now
        elif now - self._moved > _STUCK:
            self._streak.end()
        if len(front) >= LEAST and self._together():
            most = len(front) + self._streak.alone
            together = {sequence: gathered.pop(sequence) for sequence in front}
            self._asked = together
            asking = asyncio.create_task(self._ask(since, together, most))
            if not asking.done():  # a factory of the program's own may run it at once
                self._asking = asking
        else:
            self._streak.alone += len(front)
        self._say_each(gathered)

    async def _ask(self, since: int, together: dict[int, str], most: int) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            refused = await self._refusal(since, max(together), most)
        finally:
            if self._asked is together:  # else what is asked for by now is something else
                self._asking, self._asked = None, {}
        if refused is None:
            self._pause = _FIRST_PAUSE
            if self._may_wait:
                took = min(loop.time() - asked, _TIMEOUT)  # longer only where a handler blocked the loop
                self._longest = _ANSWERS * took if took > _SLOW else LONGEST_GATHERING
        else:
            logger.info("%s: %d messages acknowledged one by one: %s", self._agent, len(together), refused)
            self._not_before = max(self._not_before, loop.time() + self._pause)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
            self._streak.alone += len(together)
            self._say_each(together)
        if len(self._gathered) >= self._enough or not self._together():
            self._leave()
        elif self._gathered:
            self._gather()

    async def _refusal(self, since: int, last: int, most: int) -> str | None:
        """Ask for all from ``since`` to ``last``, which are ``most`` at most; why they may still be there."""
        body = orjson.dumps({"since": since, "last": last, "most": most})
        timeout = min(_TIMEOUT, self._terms().ack_wait / 4)
        try:
            answer = await self._connection.exchange(subjects.call(self._agent, Op.ACK), body, None, timeout)
            verdict = Verdict.decode(answer.data)
        except PermissionDenied:
            self._not_before = math.inf
            return "this connection is from before there was such a call"
        except (MasError, ValueError) as error:
            return repr(error)
        if verdict.rule == ACK_PENDING:  # so many may not be pending that it could wait for so long
            self._may_wait = False
            self._longest = GATHERING if self._longest <= LONGEST_GATHERING else LONGEST_GATHERING
        return None if verdict.ok else verdict.reason

    def _say_each(self, messages: dict[int, str]) -> None:
        if messages:
            task = asyncio.create_task(self._say_all(messages.values()))
            self._one_by_one.add(task)
            task.add_done_callback(self._one_by_one.discard)

    async def _say_all(self, ack_subjects: Iterable[str]) -> None:
        for ack_subject in ack_subjects:
            await self.say(ack_subject, ACK)
