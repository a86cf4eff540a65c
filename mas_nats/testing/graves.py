"""Failure reports, and the dead letters that become of them."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from pydantic import BaseModel, ValidationError

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.numbers import Positive
from mas_nats.testing.consumer import Consumer, Waiting
from mas_nats.testing.deciding import Deciding
from mas_nats.testing.replies import Replies
from mas_nats.testing.seen import DeadLetter, SentMessage
from mas_nats.wire import headers
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted

_EXHAUSTED = "EXHAUSTED"
_REMOVED = "AGENT_REMOVED"
_UNDELIVERED = "its agent was removed before it was handled"
_UNREPORTED = "no report: the agent died or went silent"


class _Failure(BaseModel):
    sequence: Positive
    attempt: Positive
    error_class: str
    error: str = ""
    retryable: bool

    @property
    def text(self) -> str:
        return f"{self.error_class}: {self.error}"


class Graves:
    """Takes the ``fail`` calls, and buries what no attempt is left for."""

    def __init__(self, consumers: Mapping[str, Consumer], deciding: Deciding, replies: Replies) -> None:
        self._consumers = consumers
        self._deciding = deciding
        self._replies = replies

    def report(self, call: Call) -> Verdict:
        """Answer one report: the message is tried again, or it is dead now."""
        try:
            failure = _Failure.model_validate_json(call.body)
        except ValidationError:
            text = "a failure report needs sequence, attempt, error_class, error and retryable"
            return refusals.invalid("fail", text).verdict(call.message_id)
        message = self._consumers[call.sender].messages.get(failure.sequence)
        if message is None:
            if any(failure.sequence in other.messages for other in self._consumers.values()):
                text = f"sequence {failure.sequence} is not in the inbox of {call.sender}"
                refusal = Refusal(Decision.AUTHZ_DENIED, "fail", "own_inbox", text)
                return self._deciding.refuse(call, refusal)
            return accepted(call.message_id, dead=False, error=failure.error)
        if failure.error_class == Decision.EXPIRED and headers.DEADLINE in message.fields:
            return accepted(call.message_id, dead=False, expired=True)
        if failure.retryable and failure.attempt < self._deciding.table.limits.max_deliver:
            message.last_error = failure.text
            return accepted(call.message_id, dead=False, error=failure.error)
        reason = _EXHAUSTED if failure.retryable else failure.error_class
        self._bury(call.sender, message, reason, failure.attempt, failure.text)
        return accepted(call.message_id, dead=True, error=failure.error)

    def exhausted(self, message: Waiting) -> None:
        """Bury a message that was delivered as often as it may, and of which nothing was heard."""
        error = message.last_error or _UNREPORTED
        self._bury(message.fields[headers.TARGET], message, _EXHAUSTED, message.deliveries, error)

    def clear(self, agent: str) -> None:
        """Bury all that waits for an agent that is not in the policy any more."""
        for message in tuple(self._consumers[agent].messages.values()):
            self._bury(agent, message, _REMOVED, 0, message.last_error or _UNDELIVERED)

    def _bury(self, agent: str, message: Waiting, reason: str, attempts: int, error: str) -> None:
        fields = message.fields
        letter = SentMessage(
            str(Op.REQUEST if headers.REPLY_TOKEN in fields else Op.SEND),
            fields[headers.MESSAGE_ID],
            fields[headers.SENDER],
            agent,
            fields[headers.TYPE],
            orjson.loads(message.body),
        )
        dead = DeadLetter(letter, reason, attempts, error[:300], message.body)
        self._deciding.ledger.dead[agent].append(dead)
        self._consumers[agent].remove(message.sequence)
        capability = self._replies.waiting(fields.get(headers.REPLY_TOKEN, ""))
        if capability is not None:
            text = f"{agent} could not handle the request ({reason})"
            self._replies.give_up(capability, Decision.DEAD, text)
