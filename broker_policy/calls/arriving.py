"""What comes into one namespace from others (ADR 27): judged by its own policy, recorded in its own log.

Whoever brings it is ``calls.crossing`` of the other namespace, in the same worker. It has recorded its own
decision before, so nothing is here of which the sender's namespace does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker_policy.audit.record import Outcome
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.calls.replies import Replies, answer
from broker_policy.commit.act_lane import Act, ActLane
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import ReplyCapability
from mas_nats.policy import refusals
from mas_nats.policy.authorize import authorize
from mas_nats.wire.verdict import Verdict


class Arriving:
    """Takes what other namespaces bring.

    ``put`` gives a message to the inbox lanes. ``search`` has a call looked into where that takes long, one
    of each sender at a time, before it goes on with it; False when too much waits for that.
    """

    def __init__(
        self,
        deciding: Deciding,
        acting: Acting,
        lane: ActLane,
        *,
        replies: Replies,
        put: Callable[[Call], bool],
        search: Callable[[Call, Callable[[Call], None]], bool],
    ) -> None:
        self._deciding = deciding
        self._acting = acting
        self._lane = lane
        self.replies = replies
        self.message = put
        self._search = search

    async def refused(self, call: Call) -> bool:
        """Record a message that this side does not accept; False when it cannot be recorded."""
        table = self._deciding.current()
        refusal = authorize(call, table) if table is not None else None
        line = self._deciding.refused(call, refusal or refusals.not_accepted(call.sender, call.target))
        recorded: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def tell(reference: str | None) -> Outcome:
            if not recorded.done():
                recorded.set_result(reference is not None)
            return Outcome.REFUSED

        act = Act(tell, line, self._deciding.revision, sender=call.sender)
        return self._lane.put(act) and await recorded

    async def reply(self, call: Call, capability: ReplyCapability) -> Verdict:
        """Decide about a reply to a request of this namespace, and publish it."""
        told = call.awaited()

        def go(call: Call) -> None:
            if (refusal := self._against(call)) is not None:
                self._acting.refuse(call, refusal)
            else:
                answer(call, capability, replies=self.replies, deciding=self._deciding, acting=self._acting)

        if not self._search(call, go):
            return refusals.busy().verdict(call.message_id)
        return await told

    def _against(self, call: Call) -> Refusal | None:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        if table.agent(call.target) is None:
            return refusals.unknown_sender(call.target)
        return self._deciding.refusal(call, table)
