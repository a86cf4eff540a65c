"""Answers to requesters: stored once in the reply stream, which republishes them to who asked."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import orjson
from nats.aio.client import Client

from broker_policy.commit.answered import publish_until_answered
from broker_policy.jetstream import Ack
from broker_policy.pipeline.call import Call, Refusal
from broker_policy.pipeline.shape import CLOCK_TOLERANCE_MS
from broker_policy.sealing import ReplyCapability, SealBroken, Sealer
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds for which a reply that is not answered is published again: less than its sender waits."""


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
            return _foreign("the reply token is not one that this system sealed")
        if capability.namespace != self.namespace or capability.target != call.sender:
            return _foreign(f"{call.sender} is not the agent that was asked")
        if call.received > capability.deadline + CLOCK_TOLERANCE_MS:
            return Refusal(
                Decision.REPLY_LATE,
                "reply",
                "deadline",
                "the requester has stopped waiting",
                "Nothing to do; a longer timeout= would have let the reply through",
            )
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


def _foreign(reason: str) -> Refusal:
    return Refusal(
        Decision.REPLY_FOREIGN,
        "reply",
        "capability",
        reason,
        "Reply with message.reply() to a request that was delivered to this agent",
    )
