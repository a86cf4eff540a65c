"""Releases what is due: claimed, judged under today's policy, committed to the inbox, then removed.

Each step may be repeated: a worker that dies anywhere leaves a message that another releases again, under the
same dedup id. What is refused for good goes to the dead letters; what is refused for now waits and is tried
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from broker_policy.commit.answered import UNANSWERED
from broker_policy.delayed.burial import bury
from broker_policy.delayed.claims import For, content_of
from broker_policy.delayed.feed import Missed, listen
from broker_policy.delayed.lease import ASK_EVERY, RENEW_EVERY, Lease
from broker_policy.delayed.queue import DueQueue, Waiting
from broker_policy.delayed.stream import DelayedStream
from broker_policy.ending import end
from broker_policy.jetstream import NO_ROOM, JetStreamError, StoredMessage, stream_info
from mas_nats.policy import refusals
from mas_nats.policy.call import Call
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import namespace_of
from mas_nats.wire.subjects import RELEASE
from mas_nats.wire.verdict import Decision, Verdict

log = logging.getLogger(__name__)

AT_ONCE = 128
"""Releases under way at once."""
_SHARE = 4
"""To one other namespace a quarter of them at most, and a quarter is left to what stays at home: another
namespace may not answer for as long as anybody waits."""
_ANSWER_WITHIN = 60.0
"""Seconds after which a release that was not answered is tried again."""
_PAUSE = (0.5, 30.0)
"""Seconds, first and longest, for which a full inbox, a namespace that does not answer, or everything while
the log is full, is left alone."""
_LATER = 30_000
"""Milliseconds until a message is tried again that could not be decided, or that meets what only it meets."""
_SPARE = 10_000
"""Messages that may be queued, though they were cancelled, before it is looked how many there are."""
_WHILE_TRYING = 0.1
_LOOK = 0.0003
"""Seconds by which each queued message puts off the next look at those for a namespace that is slow."""
_STOPPING = 5.0
_ALL = (Decision.LOG_FULL, Decision.POLICY_STALE)
"""Refusals for now that every message would meet. Others must not hold up anybody else's."""
_OF_TARGET = (Decision.INBOX_FULL, Decision.CIRCUIT_OPEN)
"""Refusals for now that every message to the same target would meet."""
_NOT_STORED = (*_OF_TARGET, *_ALL)
"""Refusals for now after which the inbox surely has no message of this release."""
_AWAY = (*UNANSWERED, nats.js.errors.Error, Missed)


class Releaser:
    """Releases the delayed messages of one namespace, when its worker holds the lease.

    ``judge`` takes a call for the commit lane, False when it has too much to do; ``rate`` is how many may be
    released a second; ``confirmed`` says whether policy is.
    """

    def __init__(
        self,
        nc: Client,
        namespace: str,
        delayed: DelayedStream,
        *,
        worker: str,
        judge: Callable[[Call], bool],
        rate: Callable[[], int],
        confirmed: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._nc = nc
        self._namespace = namespace
        self._delayed = delayed
        self._lease = Lease(nc, "delayed", worker)
        self._judge = judge
        self._rate = rate
        self._confirmed = confirmed
        self._clock = clock
        self._queue = DueQueue()
        self._loaded = False  # what waited before has been heard, so that the oldest is known
        self._look_at = _SPARE  # when so many are queued it is looked how many of them still wait
        self._wake = asyncio.Event()
        self._running: dict[asyncio.Task[None], str] = {}  # to which other namespace, "" for this one
        # By target, "billing/" for all of a namespace, "" for all:
        self._trying: dict[str, Waiting] = {}  # what tries whether a pause is over
        self._pauses: dict[str, tuple[float, float]] = {}  # until when, how long

    async def run(self) -> None:
        """Release for ever, whenever this worker holds the lease."""
        while True:
            if await self._lease.hold():
                await self._lead()
            await asyncio.sleep(ASK_EVERY)

    async def stop(self) -> None:
        """Finish what is under way, after ``run`` was ended; another worker may go on at once."""
        if self._running:
            await asyncio.wait(self._running, timeout=_STOPPING)
        await end(self._running)
        await self._lease.give_up()

    async def _lead(self) -> None:
        """Release until the lease is lost, or most of what is queued is gone."""
        self._queue, self._loaded, self._look_at = DueQueue(), False, _SPARE
        tasks = [asyncio.create_task(part) for part in (self._listen(), self._release_due())]
        try:
            while await self._lease.hold():
                done, _ = await asyncio.wait(tasks, timeout=RENEW_EVERY, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if await self._mostly_gone():
                    break
        except Exception:
            log.exception("delayed messages of %s cannot be released, trying again", self._namespace)
        finally:
            await end(tasks)

    async def _mostly_gone(self) -> bool:
        """Whether most of what is queued was cancelled: nobody says so, and it would be kept until due."""
        if len(self._queue) <= self._look_at:
            return False
        try:
            info = await stream_info(self._nc, subjects.DELAYED_STREAM)
        except UNANSWERED:
            return False
        self._look_at = 2 * int(info["state"]["messages"]) + _SPARE
        return len(self._queue) > self._look_at

    async def _listen(self) -> None:
        while True:
            try:
                async with aclosing(listen(self._nc)) as messages:
                    async for heard in messages:
                        if heard.waiting is not None:
                            self._queue.add(heard.waiting)
                        self._loaded = self._loaded or not heard.more
                        self._wake.set()
            except _AWAY as error:
                log.warning("delayed messages of %s: listening anew (%r)", self._namespace, error)
                await asyncio.sleep(1)

    # -- when -----------------------------------------------------------------------------------------
    async def _release_due(self) -> None:
        loop = asyncio.get_running_loop()
        free = loop.time()
        while True:
            self._wake.clear()
            now = int(self._clock() * 1000)
            ready = self._ready()
            one = self._queue.take(now) if ready else None
            if one is None:
                following = self._queue.next() if ready else None
                wait: float | None = 0.25
                if following is not None:
                    wait = min(max(following - now, 1) / 1000, 0.25)
                elif ready:
                    wait = None  # nothing is delayed: whatever comes will say so
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
                continue
            if wait := self._held_up(one):
                self._queue.put_back(one, now + int(1000 * wait))
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._release(one))
            self._running[task] = namespace_of(one.target)
            task.add_done_callback(self._ended)
            # A tenth of a second's worth may catch up after a wait.
            free = max(free, loop.time() - 0.1) + 1 / self._rate()
            if (ahead := free - loop.time()) > 0:
                await asyncio.sleep(ahead)

    def _ready(self) -> bool:
        free = len(self._running) < AT_ONCE
        return free and self._loaded and self._confirmed() and not self._paused("")

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._wake.set()

    def _held_up(self, one: Waiting) -> float:
        """Seconds that ``one`` has to wait: after a pause a single message tries whether it is over."""
        if wait := self._paused_for(one):
            return wait
        if self._crowded(namespace_of(one.target)):
            return self._later()
        doubtful = [target for target in _places(one.target) if target in self._pauses]
        if trying := [target for target in doubtful if target in self._trying]:
            return self._later() if any(target.endswith("/") for target in trying) else _WHILE_TRYING
        for target in doubtful:
            if target or not namespace_of(one.target):  # one that may wait for a minute tries for nobody else
                self._trying[target] = one
        return 0.0

    def _crowded(self, namespace: str) -> bool:
        """Whether as much is under way to another namespace as may be."""
        if not namespace:
            return False
        away = [each for each in self._running.values() if each]
        share = AT_ONCE // _SHARE
        return away.count(namespace) >= share or len(away) >= AT_ONCE - share

    def _later(self) -> float:
        """Seconds until it is looked again at what waits for a namespace that may not answer for a minute."""
        return min(max(_WHILE_TRYING, _LOOK * len(self._queue)), _PAUSE[1])

    def _paused_for(self, one: Waiting) -> float:
        """Seconds for which ``one`` is not released."""
        return max(self._paused(target) for target in _places(one.target))

    def _paused(self, target: str) -> float:
        """Seconds for which nothing is released to ``target`` ("": to anybody)."""
        until, _ = self._pauses.get(target, (0.0, 0.0))
        return max(0.0, until - asyncio.get_running_loop().time())

    def _pause(self, target: str, least: float = 0.0) -> None:
        if self._paused(target):
            return
        _, before = self._pauses.get(target, (0.0, 0.0))
        length = min(max(2 * before, least, _PAUSE[0]), _PAUSE[1])
        self._pauses[target] = (asyncio.get_running_loop().time() + length, length)

    # -- how ------------------------------------------------------------------------------------------
    async def _release(self, one: Waiting) -> None:
        try:
            done = await self._attempt(one)
        except UNANSWERED as error:
            log.warning("a delayed message of %s stays for now: %r", one.sender, error)
            if not (isinstance(error, JetStreamError) and error.code in NO_ROOM):  # for its dead letter only
                self._pause("")
            done = False
        except Exception:
            log.exception("a delayed message of %s could not be released, trying again", one.sender)
            done = False
        self._trying = {target: other for target, other in self._trying.items() if other is not one}
        if done:
            self._queue.done(one)
        else:
            pause = self._paused_for(one)
            self._queue.put_back(one, int(self._clock() * 1000) + (int(1000 * pause) or _LATER))

    async def _attempt(self, one: Waiting) -> bool:
        """Release a message; False when it stays for now."""
        stored = await self._delayed.get(one.sequence)
        if stored is None:
            return True
        content = content_of(one.target, one.type, stored.data)
        claim = await self._delayed.claims.claim(one.sender, one.token, one.sequence, For.RELEASE, content)
        if claim is None:
            return True
        if claim.what is For.CANCEL:  # by a worker that died before it removed the message
            await self._delayed.remove(one.sequence)
            return True
        verdict = await self._decide(one, stored)
        elsewhere = namespace_of(one.target)
        if verdict is None:
            if elsewhere:
                self._pause(f"{elsewhere}/")
            return False
        if not verdict.ok:
            given_up = verdict.rule == refusals.GIVEN_UP  # the id is free again in some minutes
            if verdict.retry or given_up:
                if claim.new and verdict.decision in _NOT_STORED:
                    await self._delayed.claims.drop(claim)  # it can still be cancelled
                # Where the other namespace is full, this one is not.
                if verdict.decision in _OF_TARGET or (elsewhere and verdict.retry):
                    self._pause(one.target, verdict.retry_after)
                elif verdict.decision in _ALL:
                    self._pause("")
                return False
            await bury(self._nc, self._namespace, one, stored, verdict, int(self._clock() * 1000))
        for paused in _places(one.target):
            self._pauses.pop(paused, None)
        await self._delayed.remove(one.sequence)
        return True

    async def _decide(self, one: Waiting, stored: StoredMessage) -> Verdict | None:
        """Today's decision, and the commit where it allows; None where neither is known."""
        fields = stored.headers
        call = Call(
            one.sender,
            RELEASE,
            stored.data,
            "",
            message_id=one.message_id,
            target=one.target,
            type=one.type,
            traceparent=fields.get(headers.TRACEPARENT, ""),
            tracestate=fields.get(headers.TRACESTATE, ""),
            received=one.sent,
        )
        answer = call.awaited()
        if not self._judge(call):
            return refusals.busy().verdict(one.message_id)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(answer, _ANSWER_WITHIN)
        return None


def _places(target: str) -> tuple[str, ...]:
    """What may be paused so that nothing is released to ``target``: all, all of its namespace, itself."""
    namespace = namespace_of(target)
    return ("", f"{namespace}/", target) if namespace else ("", target)
