"""Calls whose effect goes elsewhere than the inbox: the record first, then the act, then the answer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from broker_policy.audit.record import DecisionLine, Outcome
from broker_policy.calls.asides import Answer, Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.commit.answered import UNANSWERED
from broker_policy.jetstream import NO_ROOM, JetStreamError
from broker_policy.pipeline import Call, Refusal
from mas_nats.policy import refusals
from mas_nats.wire.verdict import Verdict

log = logging.getLogger(__name__)

Perform = Callable[[str], Awaitable[tuple[Verdict, Outcome]]]
"""Called with the name of the decision's record; says what to answer and what became of it."""


class Acting:
    """Performs what was decided once the decision is durable, and answers whatever happens."""

    def __init__(self, lane: ActLane, deciding: Deciding, asides: Asides, answer: Answer) -> None:
        self._lane = lane
        self._deciding = deciding
        self._asides = asides
        self._answer = answer

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """Record a refusal, then tell it."""

        async def act(_: str | None) -> Outcome:
            await self._answer(call, refusal.verdict(call.message_id))
            return Outcome.REFUSED

        self._put(call, act, self._deciding.refused(call, refusal))

    async def refused(self, call: Call, refusal: Refusal) -> Verdict:
        """Record a refusal; the verdict for whoever answers, once it is durable."""
        recorded = call.awaited()
        self.refuse(call, refusal)
        try:
            return await recorded
        finally:
            call.on_verdict = None

    def perform(self, call: Call, line: DecisionLine, perform: Perform) -> None:
        """Record ``line``, then ``perform`` and answer. Where the log is full nothing is performed."""

        async def act(reference: str | None) -> Outcome:
            if reference is None:
                verdict, outcome = refusals.log_full().verdict(call.message_id), Outcome.FAILED
            else:
                verdict, outcome = await self._attempt(call, perform, reference)
            await self._answer(call, verdict)
            return outcome

        self._put(call, act, line)

    async def _attempt(self, call: Call, perform: Perform, reference: str) -> tuple[Verdict, Outcome]:
        try:
            return await perform(reference)
        except JetStreamError as error:
            log.warning("%s of %s was refused by its store: %s", call.op, call.sender, error)
            refusal = refusals.store_full(call.op) if error.code in NO_ROOM else refusals.unavailable()
            return refusal.verdict(call.message_id), Outcome.FAILED
        except UNANSWERED as error:
            log.warning("%s of %s was not answered by its store: %r", call.op, call.sender, error)
        except Exception:
            log.exception("%s of %s failed after its decision was recorded", call.op, call.sender)
        return refusals.unavailable().verdict(call.message_id), Outcome.UNKNOWN

    def _put(self, call: Call, act: Callable[[str | None], Awaitable[Outcome]], line: DecisionLine) -> None:
        revision = self._deciding.revision
        if not self._lane.put(
            Act(act, line, revision, sender=call.sender, size=len(call.body), watched=call.watched)
        ):
            self._asides.tell(call, refusals.busy())
