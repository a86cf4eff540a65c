"""Replies: stored once in the reply stream, which republishes them to who asked (ADR 4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from nats.aio.client import Client

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.answered import publish_until_answered
from broker_policy.jetstream import Ack, StoredMessage, get_last
from broker_policy.sealing import ReplyCapability, SealBroken, Sealer, commitment
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import CLOCK_TOLERANCE_MS
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict, accepted

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds for which a reply that is not answered is published again: less than its sender waits."""
_RACES = 8
"""How often the end of a stream is looked for while somebody goes on writing it."""


class ReplyCalls:
    """Takes the ``reply`` calls of one namespace."""

    def __init__(
        self,
        replies: Replies,
        deciding: Deciding,
        acting: Acting,
        abroad: Callable[[Call, ReplyCapability], None],
    ) -> None:
        self._replies = replies
        self._deciding = deciding
        self._acting = acting
        self._abroad = abroad

    def take(self, call: Call) -> None:
        """Decide about a reply, and publish it, or hand it over to the namespace that asked."""
        capability = self._granted(call)
        if isinstance(capability, Refusal):
            self._acting.refuse(call, capability)
            return
        if capability.namespace != self._replies.namespace:
            self._abroad(call, capability)
            return
        answer(call, capability, replies=self._replies, deciding=self._deciding, acting=self._acting)

    def _granted(self, call: Call) -> ReplyCapability | Refusal:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        capability = self._replies.capability(call)
        if isinstance(capability, Refusal):
            return capability
        call.target = self._replies.requester(capability)
        return self._deciding.refusal(call, table) or capability


def answer(
    call: Call, capability: ReplyCapability, *, replies: Replies, deciding: Deciding, acting: Acting
) -> None:
    """Record that ``capability`` allows the reply ``call``, then publish it."""
    salt = deciding.sealer.salt(call.sender, call.message_id)
    committed = commitment(salt, call.target, call.type, call.body)

    async def publish(reference: str) -> tuple[Verdict, Outcome]:
        fields = deciding.envelope(call, salt) | {headers.AUDIT: reference}
        ack = await replies.publish(capability, call.body, fields)
        outcome = Outcome.DUPLICATE if ack.duplicate else Outcome.APPLIED
        return accepted(call.message_id, duplicate=ack.duplicate), outcome

    acting.perform(call, deciding.allowed(call, "capability", Way.ACT, committed), publish)


@dataclass(slots=True)
class Replies:
    """Opens reply capabilities and publishes what they allow, for one namespace.

    ``neighbour``: the same of another namespace that this worker serves.
    """

    nc: Client
    namespace: str
    sealer: Sealer
    clock: Milliseconds = wall_clock
    neighbour: Callable[[str], Replies | None] = lambda _: None

    def requester(self, capability: ReplyCapability) -> str:
        """Who asked, as the own namespace calls it."""
        away = capability.namespace != self.namespace
        return f"{capability.namespace}/{capability.requester}" if away else capability.requester

    def capability(self, call: Call) -> ReplyCapability | Refusal:
        """What the call's token allows its sender, or why it allows nothing."""
        try:
            capability = self.sealer.open(call.reply_token)
        except SealBroken:
            return refusals.reply_foreign("the reply token is not one that this system sealed")
        own = capability.namespace == self.namespace
        if capability.target != (call.sender if own else f"{self.namespace}/{call.sender}"):
            return refusals.reply_foreign(f"{call.sender} is not the agent that was asked")
        if call.received > capability.deadline + CLOCK_TOLERANCE_MS:
            return refusals.reply_late()
        return capability

    async def publish(
        self, capability: ReplyCapability, body: bytes, fields: dict[str, str], number: int = 0
    ) -> Ack:
        """Store a reply, or frame ``number`` of one: the first counts, repetitions are duplicates."""
        subject = subjects.answer(capability.requester, capability.instance, capability.correlation, number)
        fields = {**fields, headers.MSG_ID: subject}
        return await publish_until_answered(self.nc, subject, body, fields, patience=_PATIENCE)

    async def stored(self, capability: ReplyCapability, number: int) -> StoredMessage | None:
        """Frame ``number`` as it was stored; None when it is not there (any more)."""
        subject = subjects.answer(capability.requester, capability.instance, capability.correlation, number)
        return await get_last(self.nc, subjects.REPLIES_STREAM, subject)

    async def give_up(self, capability: ReplyCapability, decision: Decision, reason: str) -> None:
        """Tell the requester that there will be no reply, or no more of it; not where it has all of it."""
        now = self.clock()
        if now > capability.deadline:
            return
        fields = {
            headers.MESSAGE_ID: capability.message_id,
            headers.SENDER: capability.target,
            headers.SENT: str(now),
            headers.FAILURE: decision,
        }
        body = orjson.dumps({"reason": reason})
        ack = await self.publish(capability, body, fields)
        tries = _RACES if capability.stream else 0
        while ack.duplicate and tries:
            last = await self._last(capability)
            if last is None or ended(last):
                return
            ack = await self.publish(capability, body, fields, int(last.subject.rpartition(".")[2]) + 1)
            tries -= 1

    async def _last(self, capability: ReplyCapability) -> StoredMessage | None:
        everything = subjects.answers_to(capability.requester, capability.instance, capability.correlation)
        return await get_last(self.nc, subjects.REPLIES_STREAM, everything)

    async def tell_failure(self, token: str, reason: str) -> None:
        """Tell a requester that there will be no reply."""
        try:
            capability = self.sealer.open(token)
        except SealBroken:
            return
        own = capability.namespace == self.namespace
        if (replies := self if own else self.neighbour(capability.namespace)) is not None:
            await replies.give_up(capability, Decision.DEAD, reason)


def ended(stored: StoredMessage) -> bool:
    """Whether nothing follows ``stored``: it is the last frame, a whole reply, or says that there is none."""
    fields = stored.headers
    return headers.FRAME not in fields or headers.END in fields or headers.FAILURE in fields
