"""Calls to the policy service: one question, one verdict, and when to ask again.

A call is repeated under the same id until there is an answer, so it never acts twice. What the caller learns
in the end is one of three: a verdict, "nothing happened" (``Unavailable``), or "I cannot know"
(``OutcomeUnknown``), after which repeating with the same id is still safe (DESIGN 4, 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mas_nats.bundles import Bundles
from mas_nats.errors import IdentityRefused, MasError, OutcomeUnknown, PermissionDenied, Unavailable
from mas_nats.patience import Patience
from mas_nats.transport import Connection, NoAnswer, NoResponders, NotSent, unreachable
from mas_nats.wire import subjects
from mas_nats.wire.headers import MSG_ID, REPEATED
from mas_nats.wire.verdict import Decision, Verdict

MAX_TIMEOUT = 120.0
"""Seconds after which a call is never repeated: well within the broker's window for duplicates."""
_PAUSE = 0.1
"""Seconds between tries while nobody can take it; doubles, up to one second."""
_PASSING = frozenset({Decision.UNAVAILABLE, Decision.POLICY_STALE})
"""Refusals that say nothing about the call itself."""
_FOR_GOOD = 1.0
"""Seconds after which it is believed that a server denies the call, or that nobody is there to take it. A
server that reads its configuration again asks the callout who everybody is, and until it has the answer it
denies everything (nats-server 2.15.1); workers whose keys are replaced are away for a moment, all at once."""


class Calls:
    """What one agent asks of the policy service."""

    def __init__(self, connection: Connection, agent: str) -> None:
        self._connection = connection
        self._agent = agent
        self._patience = Patience()
        self.bundles = Bundles(connection, agent)

    async def call(
        self,
        op: str,
        body: bytes = b"{}",
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
    ) -> Verdict:
        """Ask for ``op`` and return the verdict, accepted or not.

        A worker that cannot take it at the moment (it is busy, a store does not answer, the policy cannot be
        confirmed) is asked again, or another: while a cluster elects a leader that passes by itself. So
        is one that refuses for the moment (an inbox is full) what an earlier, unanswered try may have done.

        ``timeout`` is in seconds, for all tries together; at most 120 are used.

        Raises:
            Unavailable: no worker, or no broker; nothing happened.
            IdentityRefused: the broker refuses this certificate by now; nothing happened.
            OutcomeUnknown: it went out and was not answered, whatever became of later tries.
            PermissionDenied: this certificate is not this agent's; nothing happened.

        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(timeout, MAX_TIMEOUT)
        may_have_arrived = False
        since: dict[type[Exception], float] = {}  # which refusals began when
        wait, pause = self._patience.wait, _PAUSE
        while True:
            this_try = max(0.0, min(wait, end - loop.time()))
            why: MasError | None = None  # this try did not arrive
            try:
                verdict = await self._ask(op, body, headers, this_try, loop, again=may_have_arrived)
                passing = verdict.decision in _PASSING or may_have_arrived
                if not (verdict.retry and passing):
                    return verdict
                if loop.time() + pause >= end and not may_have_arrived:
                    return verdict
                pause = await _rest(pause, end)
            except NoAnswer:
                may_have_arrived = True
                wait *= 2
            except NotSent as error:
                why = _nothing_happened(error)
            except IdentityRefused as error:  # by now: no other try would do better
                why, end = error, 0.0
            except (PermissionDenied, NoResponders) as error:
                why = _nothing_happened(error)
                so_long = loop.time() - since.setdefault(type(error), loop.time())
                if so_long > _FOR_GOOD and not may_have_arrived:
                    end = 0.0
                else:
                    pause = await _rest(pause, end)
            if loop.time() < end:
                continue
            if why is not None and not may_have_arrived:
                raise why
            raise OutcomeUnknown(
                (headers or {}).get(MSG_ID, ""),
                f"no answer to {op} within {timeout:g} s. "
                "It may have happened; repeating it with the same id is safe",
            ) from why

    async def _ask(
        self,
        op: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        wait: float,
        loop: asyncio.AbstractEventLoop,  # to look it up is a system call each time, before Python 3.12
        *,
        again: bool,
    ) -> Verdict:
        """Ask once; the answers teach how long to wait for one."""
        asked = loop.time()
        if again:
            headers = {**(headers or {}), REPEATED: "1"}
        verdict = None
        try:
            if not again:
                verdict = await self.bundles.ask(op, body, headers, wait, loop)
            if verdict is None:
                answer = await self._connection.exchange(subjects.call(self._agent, op), body, headers, wait)
                verdict = Verdict.decode(answer.data)
        except NoAnswer:
            self._patience.unanswered(loop.time() - asked)
            raise
        if not again:
            self._patience.answered(loop.time() - asked)
        return verdict


def _nothing_happened(error: NotSent | NoResponders | PermissionDenied) -> MasError:
    """What to tell of a try that did not arrive."""
    if isinstance(error, PermissionDenied):
        return error
    if isinstance(error, NotSent):
        why = unreachable(error)
    else:
        why = Unavailable("no policy worker answers, so nothing was sent. Start one (`mas up`), then repeat")
    why.__cause__ = error
    return why


async def _rest(pause: float, end: float) -> float:
    """Wait before the next try, not beyond ``end``; how long to wait the next time."""
    await asyncio.sleep(max(0.0, min(pause, end - asyncio.get_running_loop().time())))
    return min(1.0, pause * 2)
