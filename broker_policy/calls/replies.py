"""Replies: stored once in the reply stream, which republishes them to who asked (ADR 4)."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import orjson
from nats.aio.client import Client

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.answered import publish_until_answered
from broker_policy.jetstream import Ack
from broker_policy.sealing import ReplyCapability, SealBroken, Sealer, commitment
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import CLOCK_TOLERANCE_MS
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict, accepted

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds for which a reply that is not answered is published again: less than its sender waits."""


class ReplyCalls:
    """Takes the ``reply`` calls of one namespace."""

    def __init__(self, replies: Replies, deciding: Deciding, acting: Acting) -> None:
        self._replies = replies
        self._deciding = deciding
        self._acting = acting

    def take(self, call: Call) -> None:
        """Decide about a reply, and publish it."""
        capability = self._granted(call)
        if isinstance(capability, Refusal):
            self._acting.refuse(call, capability)
            return
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)

        async def publish(reference: str) -> tuple[Verdict, Outcome]:
            fields = self._deciding.envelope(call, salt) | {headers.AUDIT: reference}
            ack = await self._replies.publish(capability, call.body, fields)
            outcome = Outcome.DUPLICATE if ack.duplicate else Outcome.APPLIED
            return accepted(call.message_id, duplicate=ack.duplicate), outcome

        self._acting.perform(call, self._deciding.allowed(call, "capability", Way.ACT, committed), publish)

    def _granted(self, call: Call) -> ReplyCapability | Refusal:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        capability = self._replies.capability(call)
        if isinstance(capability, Refusal):
            return capability
        call.target = capability.requester
        return self._deciding.refusal(call, table) or capability


@dataclass(slots=True)
class Replies:
    """Opens reply capabilities and publishes what they allow, for one namespace."""

    nc: Client
    namespace: str
    sealer: Sealer

    def capability(self, call: Call) -> ReplyCapability | Refusal:
        """What the call's token allows its sender, or why it allows nothing."""
        try:
            capability = self.sealer.open(call.reply_token)
        except SealBroken:
            return refusals.reply_foreign("the reply token is not one that this system sealed")
        if capability.namespace != self.namespace or capability.target != call.sender:
            return refusals.reply_foreign(f"{call.sender} is not the agent that was asked")
        if call.received > capability.deadline + CLOCK_TOLERANCE_MS:
            return refusals.reply_late()
        return capability

    async def publish(self, capability: ReplyCapability, body: bytes, fields: dict[str, str]) -> Ack:
        """Store a reply under the request's correlation: the first counts, repetitions are duplicates."""
        subject = subjects.answer(capability.requester, capability.instance, capability.correlation, 0)
        fields = {**fields, headers.MSG_ID: subject}
        return await publish_until_answered(self.nc, subject, body, fields, patience=_PATIENCE)

    async def tell_failure(self, token: str, reason: str) -> None:
        """Tell a requester that there will be no reply."""
        try:
            capability = self.sealer.open(token)
        except SealBroken:
            return
        now = time.time_ns() // 1_000_000
        if capability.namespace != self.namespace or now > capability.deadline:
            return
        fields = {
            headers.MESSAGE_ID: capability.message_id,
            headers.SENDER: capability.target,
            headers.SENT: str(now),
            headers.FAILURE: Decision.DEAD,
        }
        await self.publish(capability, orjson.dumps({"reason": reason}), fields)
