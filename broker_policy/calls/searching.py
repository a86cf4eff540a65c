"""What is large is searched in a process of its own before its turn, so that the loop stays free (ADR 23).

The calls of one sender stay in their order: what it sends after a large message waits for it. Others do not.
What was found out is looked at when the pipeline comes to that step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable

from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.calls.frames import FrameCalls
from broker_policy.calls.model_answers import ModelAnswers
from broker_policy.dlp import LARGE, Apart, Ruleset, SearchFailed
from broker_policy.ending import end
from broker_policy.pipeline import Call, Refusal, judge
from broker_policy.pipeline.dlp import Searched
from mas_nats.policy import refusals
from mas_nats.policy.model_answer import is_answer
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
MOST_BYTES_OF_ONE = 16 << 20
"""Bytes of calls that may wait for a search, of all senders and of one."""
_GLANCE = 1 << 20
"""Bytes up to which one pass over the raw bytes is done in place: two milliseconds."""
_JUDGED = frozenset({Op.SEND, Op.REQUEST, Op.DELAY})
_SCREENED = frozenset({Op.FRAME, Op.PROMPT})

Go = Callable[[Call], None]


class Searching:
    """Stands before the calls that are searched."""

    def __init__(
        self, apart: Apart, deciding: Deciding, frames: FrameCalls, answers: ModelAnswers, asides: Asides
    ) -> None:
        self._apart = apart
        self._deciding = deciding
        self._frames = frames
        self._answers = answers
        self._asides = asides
        self._waiting: dict[str, deque[tuple[Call, Go]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes_of: Counter[str] = Counter()

    def take(self, call: Call, go: Go) -> bool:
        """Have ``call`` searched where that is needed, then ``go`` on with it; False when too much waits."""
        waiting = self._waiting.get(call.sender)
        if waiting is None and not self._costly(call):
            go(call)
            return True
        size = len(call.body) + 1024
        full = self._bytes_of.total() + size > MOST_BYTES
        if full or self._bytes_of[call.sender] + size > MOST_BYTES_OF_ONE:
            return False
        self._bytes_of[call.sender] += size
        if waiting is not None:
            waiting.append((call, go))
            return True
        self._waiting[call.sender] = deque([(call, go)])
        task = asyncio.create_task(self._work(call.sender))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def stop(self, patience: float) -> None:
        """Wait ``patience`` seconds for what is under way, then end it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
            await end(self._tasks)

    async def _work(self, sender: str) -> None:
        waiting = self._waiting[sender]
        try:
            while waiting:
                call, go = waiting[0]
                refusal = await self.search(call)
                waiting.popleft()
                self._bytes_of[sender] -= len(call.body) + 1024
                if refusal is not None:
                    self._asides.tell(call, refusal)
                else:
                    self._go(call, go)
        finally:
            del self._waiting[sender], self._bytes_of[sender]

    def _go(self, call: Call, go: Go) -> None:
        try:
            go(call)
        except Exception:
            log.exception("%s of %s failed", call.op, call.sender)
            self._asides.tell(call, refusals.unavailable())

    async def search(self, call: Call) -> Refusal | None:
        """Find out about ``call`` what its step will ask for; a refusal where that cannot be done now."""
        try:
            if not self._costly(call):
                return None
            if (screens := self._screens(call)) is not None:
                await screens.search(call)
                return None
            rules = self._rules(call)
            if rules is not None:
                call.searched = Searched(rules, call.body, await self._apart.judge(rules, call.body))
        except ValueError:
            return None  # the first step says that it is no JSON
        except SearchFailed:
            return refusals.unavailable()
        except Exception:
            log.exception("the content of a %s of %s could not be searched", call.op, call.sender)
            return refusals.unavailable()
        return None

    def _costly(self, call: Call) -> bool:
        """Whether searching it in place might take long; not where it is refused for something else."""
        if call.op in _SCREENED and (screens := self._screens(call)) is not None:
            return screens.costly(call)
        if len(call.body) <= LARGE or (rules := self._rules(call)) is None:
            return False
        return not _clean_at_a_glance(rules, call.body)

    def _screens(self, call: Call) -> FrameCalls | ModelAnswers | None:
        """Who searches it with what came before; None where its body stands for itself."""
        if call.op not in _SCREENED:
            return None
        if call.op == Op.FRAME:
            return self._frames
        return self._answers if is_answer(call) else None

    def _rules(self, call: Call) -> Ruleset | None:
        """The rules by which the call will be searched; None where it will not come so far."""
        table = self._deciding.table(call)
        if not isinstance(table, Table) or len(call.body) > self._deciding.room():
            return None
        if call.op in _JUDGED and judge(call, table) is not None:
            return None
        rules = self._deciding.inspection.rules(table)
        return None if rules is None or rules.idle else rules


def _clean_at_a_glance(rules: Ruleset, body: bytes) -> bool:
    """Whether one pass over the raw bytes says that nothing can be in it."""
    if len(body) > _GLANCE or b"\\" in body or not body.isascii():
        return False
    hits, packed = rules.look(body)
    return not hits and not packed
