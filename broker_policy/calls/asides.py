"""Calls that are answered beside the commit lanes: bounded in all and for each agent, and always answered."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from broker_policy.commit.answered import UNANSWERED
from broker_policy.ending import end
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.wire.verdict import Verdict

log = logging.getLogger(__name__)

MOST = 1_000
MOST_OF_ONE = 256
"""Calls of one agent under way at once; its instances report one failure for each message at a time."""
MOST_BYTES = 16_384
"""Bytes of such a call's body."""
Answer = Callable[[Call, Verdict], Coroutine[Any, Any, None]]
Operation = Callable[[Call], Awaitable[Verdict]]


class Asides:
    """Runs such calls as tasks of their own."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._running: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._of: Counter[str] = Counter()

    def take(self, call: Call, operation: Operation) -> None:
        """Run ``operation`` and answer with what it returns."""
        if len(call.body) > MOST_BYTES:
            text = f"a {call.op} call has {MOST_BYTES} bytes at most, not {len(call.body)}"
            self.tell(call, refusals.invalid("body", text, "Send less in it"))
        elif len(self._running) >= MOST or self._of[call.sender] >= MOST_OF_ONE:
            self.tell(call, refusals.busy())
        else:
            self._of[call.sender] += 1
            _keep(self._running, self._run(call, operation))

    def tell(self, call: Call, refusal: Refusal) -> None:
        """Answer with a refusal that needs no record: nothing was decided."""
        _keep(self._answering, self._answer(call, refusal.verdict(call.message_id)))

    async def stop(self, patience: float) -> None:
        """Wait ``patience`` seconds for what is under way, then end it."""
        if tasks := {*self._running, *self._answering}:
            await asyncio.wait(tasks, timeout=patience)
            await end(tasks)

    async def _run(self, call: Call, operation: Operation) -> None:
        try:
            verdict = await operation(call)
        except UNANSWERED as error:
            log.warning("%s of %s failed: %r", call.op, call.sender, error)
            verdict = refusals.unavailable().verdict(call.message_id)
        except Exception:
            log.exception("%s of %s failed", call.op, call.sender)
            verdict = refusals.unavailable().verdict(call.message_id)
        finally:
            self._of[call.sender] -= 1
            if not self._of[call.sender]:
                del self._of[call.sender]
        await self._answer(call, verdict)


def _keep(tasks: set[asyncio.Task[None]], running: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(running)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
