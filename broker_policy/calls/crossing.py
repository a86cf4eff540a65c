"""Messages of one namespace to agents of others, and replies to requests that came from them (ADR 27).

The decision of the own side is recorded first. Then the other side, which the same worker serves, judges by
its own policy, records and commits; its verdict is the answer. A worker that dies on the way has not
answered, so the sender asks again under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from broker_policy.admission.rates import Rates
from broker_policy.audit.record import DecisionLine, Outcome, Way
from broker_policy.calls.admitting import Admitting
from broker_policy.calls.arriving import Arriving
from broker_policy.calls.asides import Answer, Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.dedup import RecentIds, dedup_id
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import ReplyCapability, commitment
from mas_nats.policy import refusals
from mas_nats.wire.identity import agent_of, namespace_of, split_target
from mas_nats.wire.subjects import CROSSING, RELEASE
from mas_nats.wire.verdict import Verdict

log = logging.getLogger(__name__)

Neighbours = Callable[[str], Arriving | None]
"""The entrance of another namespace that this worker serves; None where it serves none of that name."""
MOST_REFUSED = 50
"""Messages a second to one namespace, in one worker, that both sides record though the other does not accept
them. What is more is refused by the own side alone, so that nobody fills another's audit."""
_PATIENCE = 60.0
"""Seconds after which nobody waits for the other side any more; the sender has asked again long before."""


class Crossing:
    """Takes the calls of one namespace that are for another.

    ``messages`` and ``answers`` are the lanes of their records, apart from one another and from all others: a
    namespace that is stuck holds up neither replies nor what stays at home.
    """

    def __init__(
        self,
        deciding: Deciding,
        rates: Rates,
        neighbours: Neighbours,
        *,
        messages: ActLane,
        answers: ActLane,
        asides: Asides,
        answer: Answer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deciding = deciding
        self._rates = rates
        self._neighbours = neighbours
        self._messages = messages
        self._answers = answers
        self._asides = asides
        self._answer = answer
        self._clock = clock
        self._recent = RecentIds()
        self._admitting = Admitting(
            "messages to other namespaces", ask=self._beyond_limits, decide=self._decide, asides=asides
        )
        self._refused: dict[str, tuple[int, int]] = {}  # by namespace: in which second, how many

    def concerns(self, call: Call) -> bool:
        """Whether ``call`` names an agent of another namespace."""
        if "/" not in call.target:
            return False
        try:
            namespace, _ = split_target(call.target)
        except ValueError:
            return False  # the shape step says so
        return namespace != self._deciding.namespace

    def take(self, call: Call) -> None:
        """Decide about a message, and hand it over; where limits are set, once they were asked."""
        table = self._deciding.current()
        counted = table is not None and table.limited and call.op != RELEASE  # that was, when it was taken
        self._admitting.take(call, counted=counted)

    def turns_away(self, call: Call) -> bool:
        """Whether the other side would not accept what is delayed; then it is refused at once."""
        if self._deciding.forbidden_now(call) is not None or self._accepted(call):
            return False
        self._refuse_on_both_sides(call)
        return True

    def reply(self, call: Call, capability: ReplyCapability) -> None:
        """Record a reply whose content and right were judged, and hand it over."""

        async def deliver() -> Verdict:
            home = self._neighbours(capability.namespace)
            if home is None:
                return refusals.unavailable().verdict(call.message_id)
            return await home.reply(self._brought(call), capability)

        self._hand_over(self._answers, call, "capability", deliver)

    async def stop(self) -> None:
        """Decide about what was taken."""
        await self._admitting.stop()

    # -- the sender's limits ---------------------------------------------------------------------------
    async def _beyond_limits(self, calls: Sequence[Call]) -> list[Refusal | None]:
        """What the limits have against each; they count neither what is refused anyway nor repetitions."""
        refused: list[Refusal | None] = [None] * len(calls)
        table = self._deciding.current()
        if table is None:
            return refused
        counted = [
            place
            for place, call in enumerate(calls)
            if call.op != RELEASE
            and self._recent.get(self._dedup(call)) is None
            and self._deciding.forbidden_now(call) is None
            and self._accepted(call)
        ]
        messages = [(calls[place].sender, calls[place].target) for place in counted]
        said = await self._rates.admit(messages, table.document.governance.rate_limit)
        for place, refusal in zip(counted, said, strict=True):
            refused[place] = refusal
        return refused

    # -- deciding --------------------------------------------------------------------------------------
    def _decide(self, call: Call, limit: Refusal | None) -> None:
        """The first refusal of all steps; ``limit`` is that of the limits."""
        if (refusal := self._deciding.forbidden_now(call)) is not None:
            self._refuse(self._messages, call, refusal)
        elif not self._accepted(call):
            self._refuse_on_both_sides(call)
        elif (refusal := limit or self._deciding.inspected_now(call)) is not None:
            self._refuse(self._messages, call, refusal)
        else:
            self._hand_over(self._messages, call, "permissions", lambda: self._deliver(call))

    def _accepted(self, call: Call) -> bool:
        """Whether the policy of the other side accepts it, as far as this worker knows."""
        there = self._deciding.follower.table(namespace_of(call.target))
        return there is not None and there.accepts(self._name(call.sender), agent_of(call.target))

    def _refuse_on_both_sides(self, call: Call) -> None:
        """The other side records it, too, whether there is such an agent or not."""
        refusal = refusals.not_accepted(self._name(call.sender), call.target)
        namespace = namespace_of(call.target)
        if not self._may_be_recorded(namespace):
            self._refuse(self._messages, call, refusals.too_many_refused(namespace, MOST_REFUSED))
            return
        exists = self._deciding.follower.table(namespace) is not None

        async def act(reference: str | None) -> Outcome:
            told = refusal
            if reference is not None and exists:
                there = self._neighbours(namespace)
                if there is None or not await there.refused(self._brought(call)):
                    told = refusals.unavailable()  # the sender asks again, so that both sides have it
            await self._answer(call, told.verdict(call.message_id))
            return Outcome.REFUSED

        self._put(self._messages, call, act, self._deciding.refused(call, refusal))

    def _may_be_recorded(self, namespace: str) -> bool:
        second = int(self._clock())
        since, count = self._refused.get(namespace, (second, 0))
        count = count + 1 if since == second else 1
        self._refused[namespace] = (second, count)
        return count <= MOST_REFUSED

    # -- handing over ----------------------------------------------------------------------------------
    def _hand_over(
        self, lane: ActLane, call: Call, rule: str, deliver: Callable[[], Awaitable[Verdict]]
    ) -> None:
        """Record that the own side allows it, then let the other side decide; its verdict is the answer."""
        salt = self._deciding.sealer.salt(self._name(call.sender), call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)
        line = self._deciding.allowed(call, rule, Way.ACT, committed)

        async def act(reference: str | None) -> Outcome:
            if reference is None:
                await self._answer(call, refusals.log_full().verdict(call.message_id))
                return Outcome.FAILED
            try:
                verdict = await asyncio.wait_for(deliver(), _PATIENCE)
            except TimeoutError:  # any answer would be a guess
                log.warning("%s of %s: the other namespace does not answer", call.op, call.sender)
                return Outcome.UNKNOWN
            if not verdict.ok:
                self._refuse(lane, call, self._told(call, verdict))
                return Outcome.FAILED
            if call.op in CROSSING:
                self._recent.add(self._dedup(call), committed)
            await self._answer(call, verdict)
            return Outcome.DUPLICATE if verdict.duplicate else Outcome.APPLIED

        self._put(lane, call, act, line)

    async def _deliver(self, call: Call) -> Verdict:
        there = self._neighbours(namespace_of(call.target))
        if there is None:
            return refusals.unavailable().verdict(call.message_id)
        brought = self._brought(call)
        told = brought.awaited()
        if not there.message(brought):
            return refusals.busy().verdict(call.message_id)
        return await told

    def _told(self, call: Call, verdict: Verdict) -> Refusal:
        """What the sender is told of the other side's refusal: not why that accepts nothing from it."""
        if verdict.step in ("identity", "authorize") and call.op in CROSSING:
            return refusals.not_accepted(self._name(call.sender), call.target)
        return Refusal(
            verdict.decision,
            verdict.step,
            verdict.rule,
            verdict.reason,
            verdict.fix,
            retry=verdict.retry,
            retry_after=verdict.retry_after,
        )

    def _brought(self, call: Call) -> Call:
        """``call`` as the other side gets it. Nothing that an agent says can make one: only this does."""
        return replace(
            call,
            sender=self._name(call.sender),
            target=agent_of(call.target),
            origin=self._deciding.namespace,
            certificate=self._deciding.registry.fingerprint(call.sender),
            crosses=False,
            reply_to="",
            reply_token="",
            stream=False,  # a reply comes whole
            admitted=False,
            finding=None,
            searched=None,
            probe=False,
            on_verdict=None,
            watched=None,
        )

    # -- recording -------------------------------------------------------------------------------------
    def _refuse(self, lane: ActLane, call: Call, refusal: Refusal) -> None:
        async def act(_: str | None) -> Outcome:
            await self._answer(call, refusal.verdict(call.message_id))
            return Outcome.REFUSED

        self._put(lane, call, act, self._deciding.refused(call, refusal))

    def _put(
        self,
        lane: ActLane,
        call: Call,
        act: Callable[[str | None], Awaitable[Outcome]],
        line: DecisionLine,
    ) -> None:
        revision = self._deciding.revision
        if not lane.put(
            Act(act, line, revision, sender=call.sender, size=len(call.body), watched=call.watched)
        ):
            self._asides.tell(call, refusals.busy())

    def _name(self, agent: str) -> str:
        return f"{self._deciding.namespace}/{agent}"

    def _dedup(self, call: Call) -> str:
        return dedup_id(namespace_of(call.target), self._name(call.sender), call.message_id)
