"""Acknowledging many messages at once: what lies at the front of an inbox is taken out of it (ADR 37)."""

from __future__ import annotations

import asyncio
import logging

from nats.aio.client import Client
from pydantic import BaseModel, ValidationError

from broker_policy.audit import log
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.jetstream import api, get_next
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.numbers import Positive
from mas_nats.wire import subjects
from mas_nats.wire.verdict import ACK_PENDING, Verdict, accepted

logger = logging.getLogger(__name__)


class _Handled(BaseModel):
    """The body of such a call, as any agent may have made it up."""

    since: Positive
    last: Positive
    most: Positive


class Acknowledging:
    """Takes the ``ack`` calls of one namespace.

    An instance says that everything in its agent's inbox from one sequence to another is handled. Only it can
    know that, and it harms nobody else when it is wrong. What can be seen from here is checked: that nothing
    lies before them, where it may be with another instance or wait for its next attempt, and that the last
    one was delivered.
    """

    def __init__(self, nc: Client, deciding: Deciding, asides: Asides) -> None:
        self._nc = nc
        self._deciding = deciding
        self._asides = asides

    def take(self, call: Call) -> None:
        """Answer one call."""
        self._asides.take(call, self.acknowledge)

    async def acknowledge(self, call: Call) -> Verdict:
        """Take the messages out, or say why not; then the agent acknowledges each by itself."""
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            handled = _Handled.model_validate_json(call.body)
        except ValidationError:
            return refusals.invalid("ack", "an ack needs since, last and most").verdict(call.message_id)
        if (refusal := await self._against(call.sender, handled)) is not None:
            return refusal.verdict(call.message_id)
        removed = await log.remove(self._nc, subjects.inbox(call.sender), handled.last)
        if removed > handled.most:
            logger.error(
                "%s acknowledged %d messages and %d were removed, up to %d: please report this",
                call.sender,
                handled.most,
                removed,
                handled.last,
            )
        return accepted(call.message_id, removed=removed)

    async def _against(self, agent: str, handled: _Handled) -> Refusal | None:
        oldest, consumer = await asyncio.gather(
            get_next(self._nc, subjects.INBOX_STREAM, 1, subjects.inbox(agent)),
            api(self._nc, f"CONSUMER.INFO.{subjects.INBOX_STREAM}.{agent}", {}),
        )
        if oldest is not None and oldest.sequence < handled.since:
            return refusals.not_together("oldest", f"message {oldest.sequence} lies before {handled.since}")
        if int(consumer["delivered"]["stream_seq"]) < handled.last:
            return refusals.not_together("delivered", f"message {handled.last} was not delivered")
        # One that has as many pending as it may is woken by an acknowledgement, and by a removal it is not.
        if 4 * int(consumer["num_ack_pending"]) > 3 * int(consumer["config"]["max_ack_pending"]):
            return refusals.not_together(ACK_PENDING, "nearly as many messages are pending as may be")
        return None
