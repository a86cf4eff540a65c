"""The policy service of the in-memory broker: it decides with ``mas_nats.policy`` and commits to memory."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from mas_nats.policy import refusals
from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.document import Document, Limits
from mas_nats.policy.instances import Instances
from mas_nats.policy.presence import MAX_HELLO_BYTES, Bye, Discover, Hello, terms
from mas_nats.policy.shape import shape, well_formed
from mas_nats.policy.state_call import BadStateCall, StateCall
from mas_nats.policy.table import Table
from mas_nats.testing.consumer import Consumer, Waiting
from mas_nats.testing.replies import Replies
from mas_nats.testing.seen import DeadLetter, SeenDecision, SentMessage
from mas_nats.testing.states import Conflict, StateBucket
from mas_nats.transport import Incoming
from mas_nats.wire import headers
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict, accepted

MAX_PAYLOAD = 2 << 20
"""Bytes that the server of ``mas up`` takes, headers included."""
_HEADER_ROOM = 8_192
_EXHAUSTED = "EXHAUSTED"
_UNREPORTED = "no report: the agent died or went silent"


class _Failure(BaseModel):
    sequence: int = Field(ge=1, strict=True)
    attempt: int = Field(ge=1, strict=True)
    error_class: str
    error: str = ""
    retryable: bool

    @property
    def text(self) -> str:
        return f"{self.error_class}: {self.error}"


@dataclass(slots=True)
class Ledger:
    """Everything that happened, in its order."""

    sent: list[SentMessage] = field(default_factory=list)
    replies: list[SentMessage] = field(default_factory=list)
    decisions: list[SeenDecision] = field(default_factory=list)
    dead: dict[str, list[DeadLetter]] = field(default_factory=lambda: defaultdict(list))


class MemoryService:
    """One namespace. ``now`` is unix time in seconds; ``publish`` gets every reply."""

    def __init__(
        self, document: Document, *, now: Callable[[], float], publish: Callable[[Incoming], None]
    ) -> None:
        self.ledger = Ledger()
        self.states = StateBucket()
        self.replies = Replies(now, publish)
        self.instances = Instances(asyncio.get_running_loop().time)
        self.consumers: dict[str, Consumer] = {}
        self.apply(document)
        self._now = now
        self._sequences = itertools.count(1)
        self._names = itertools.count(1)
        self._given: set[tuple[str, str]] = set()
        self._known: dict[tuple[str, str], tuple[str, str, bytes]] = {}
        self._operations: dict[str, Callable[[Call, Table], Verdict]] = {
            Op.HELLO: self._hello,
            Op.BYE: self._bye,
            Op.DISCOVER: self._discover,
            Op.SEND: self._message,
            Op.REQUEST: self._message,
            Op.REPLY: self._reply,
            Op.STATE: self._state,
            Op.FAIL: self._fail,
        }

    def apply(self, document: Document) -> None:
        """Judge under ``document`` from here on."""
        self.table = Table.compile(document, 1)
        for agent in document.agents:
            if agent not in self.consumers:
                self.consumers[agent] = Consumer(agent, lambda: self.table.limits, self._exhausted)

    def close(self) -> None:
        """End every timer."""
        for consumer in self.consumers.values():
            consumer.close()

    def take(self, call: Call) -> Verdict:
        """Decide about a call, do it, and say what came of it."""
        operation = self._operations.get(call.op)
        if operation is None:
            text = f"there is no call {call.op[:40]!r}"
            return refusals.invalid("op", text).verdict(call.message_id)
        if self.table.agent(call.sender) is None:
            return self.refuse(call, refusals.unknown_sender(call.sender))
        return operation(call, self.table)

    def refuse(self, call: Call, refusal: Refusal) -> Verdict:
        """Note a refusal and tell it."""
        self._decided(call, refusal.decision, refusal.step, refusal.rule, refusal.reason)
        return refusal.verdict(call.message_id)

    # -- presence ----------------------------------------------------------------------------------

    def _hello(self, call: Call, table: Table) -> Verdict:
        if len(call.body) > MAX_HELLO_BYTES:
            text = f"capabilities and metadata exceed {MAX_HELLO_BYTES} bytes"
            return refusals.invalid("metadata", text).verdict(call.message_id)
        try:
            hello = Hello.model_validate_json(call.body)
        except ValidationError:
            text = "a hello needs capabilities and metadata"
            return refusals.invalid("hello", text).verdict(call.message_id)
        instance = hello.instance
        if instance is None or (call.sender, instance) not in self._given:
            instance = f"{next(self._names):020x}"
            self._given.add((call.sender, instance))
        if hello.receives:
            if not self.instances.has_room(call.sender, instance, len(call.body)):
                return refusals.too_many_instances(call.sender).verdict(call.message_id)
            metadata: dict[str, Any] = dict(hello.metadata or {})
            self.instances.announce(call.sender, instance, hello.capabilities, metadata, len(call.body))
        return accepted(call.message_id, **terms(table, call.sender, instance), retry_spread=0.0)

    def _bye(self, call: Call, _: Table) -> Verdict:
        try:
            instance = Bye.model_validate_json(call.body).instance
        except ValidationError:
            return refusals.invalid("bye", "a bye needs the instance").verdict(call.message_id)
        self.instances.withdraw(call.sender, instance)
        return accepted(call.message_id)

    def _discover(self, call: Call, table: Table) -> Verdict:
        try:
            wanted = Discover.model_validate_json(call.body).capabilities
        except ValidationError:
            text = "discover needs a list of capabilities"
            return refusals.invalid("discover", text).verdict(call.message_id)
        return accepted(call.message_id, agents=self.instances.discover(call.sender, wanted, table))

    # -- messages ----------------------------------------------------------------------------------

    def _message(self, call: Call, table: Table) -> Verdict:
        if (refusal := self._judge(call, table)) is not None:
            return self.refuse(call, refusal)
        content = (call.target, call.type, call.body)
        if (known := self._known.get((call.sender, call.message_id))) is not None:
            if known != content:
                return self.refuse(call, refusals.id_reused())
            self._decided(call, Decision.ALLOWED, rule="duplicate")
            return accepted(call.message_id, duplicate=True)
        if (full := self._full(call, table.limits)) is not None:
            return self.refuse(call, full)
        fields = self._envelope(call) | {
            headers.TARGET: call.target,
            headers.AUDIT: self._decided(call, Decision.ALLOWED, rule="permissions"),
        }
        if call.op == Op.REQUEST:
            fields[headers.DEADLINE] = str(call.deadline)
            fields[headers.REPLY_TOKEN] = self.replies.grant(call)
        self._known[call.sender, call.message_id] = content
        self.ledger.sent.append(_seen(call))
        self.consumers[call.target].put(Waiting(next(self._sequences), fields, call.body))
        return accepted(call.message_id)

    def _full(self, call: Call, limits: Limits) -> Refusal | None:
        waiting = self.consumers[call.target].messages
        if len(waiting) >= limits.inbox_messages:
            return refusals.inbox_full(call.target)
        stored = sum(
            len(each.body) for consumer in self.consumers.values() for each in consumer.messages.values()
        )
        return refusals.log_full() if stored + len(call.body) > limits.log_bytes else None

    def _judge(self, call: Call, table: Table) -> Refusal | None:
        room = MAX_PAYLOAD - _HEADER_ROOM
        if len(call.body) > room:
            return refusals.too_large(len(call.body), room)
        return shape(call, table) or authorize(call, table)

    def _envelope(self, call: Call) -> dict[str, str]:
        fields = {
            headers.MESSAGE_ID: call.message_id,
            headers.SENDER: call.sender,
            headers.TYPE: call.type,
            headers.SENT: str(call.received),
        }
        if call.traceparent:
            fields[headers.TRACEPARENT] = call.traceparent
            if call.tracestate:
                fields[headers.TRACESTATE] = call.tracestate
        return fields

    def _reply(self, call: Call, table: Table) -> Verdict:
        capability = self.replies.capability(call)
        if isinstance(capability, Refusal):
            return self.refuse(call, capability)
        call.target = capability.requester
        if (refusal := self._judge(call, table)) is not None:
            return self.refuse(call, refusal)
        fields = self._envelope(call) | {
            headers.AUDIT: self._decided(call, Decision.ALLOWED, rule="capability")
        }
        first = self.replies.store(capability.answer(), call.body, fields)
        if first:
            self.ledger.replies.append(_seen(call))
        return accepted(call.message_id, duplicate=not first)

    # -- state -------------------------------------------------------------------------------------

    def _state(self, call: Call, table: Table) -> Verdict:
        call.target, call.type = call.sender, "state"
        if (refusal := well_formed(call)) is not None:
            return self.refuse(call, refusal)
        try:
            wanted = StateCall.read(call.body, min(table.limits.max_state, MAX_PAYLOAD - _HEADER_ROOM))
        except BadStateCall as error:
            return self.refuse(call, refusals.invalid("state", str(error)))
        if wanted.op == "get":
            newest, value = self.states.newest(call.sender), self.states.value(call.sender)
            revision = newest.number if newest else 0
            corrupt = newest is not None and bool(newest.body) and value is None
            return accepted(call.message_id, revision=revision, value=value, corrupt=corrupt)
        self._decided(call, Decision.ALLOWED, rule="own_state")
        try:
            revision = self.states.mediated(call.sender, wanted, call.message_id)
        except Conflict:
            return refusals.state_conflict(call.sender).verdict(call.message_id)
        return accepted(call.message_id, revision=revision)

    # -- failures and dead letters -----------------------------------------------------------------

    def _fail(self, call: Call, table: Table) -> Verdict:
        try:
            failure = _Failure.model_validate_json(call.body)
        except ValidationError:
            text = "a failure report needs sequence, attempt, error_class, error and retryable"
            return refusals.invalid("fail", text).verdict(call.message_id)
        message = self.consumers[call.sender].messages.get(failure.sequence)
        if message is None:
            if any(failure.sequence in other.messages for other in self.consumers.values()):
                text = f"sequence {failure.sequence} is not in the inbox of {call.sender}"
                return Refusal(Decision.AUTHZ_DENIED, "fail", "own_inbox", text).verdict(call.message_id)
            return accepted(call.message_id, dead=True)
        if failure.error_class == Decision.EXPIRED and headers.DEADLINE in message.fields:
            return accepted(call.message_id, dead=False, expired=True)
        if failure.retryable and failure.attempt < table.limits.max_deliver:
            message.last_error = failure.text
            return accepted(call.message_id, dead=False)
        reason = _EXHAUSTED if failure.retryable else failure.error_class
        self._bury(call.sender, message, reason, failure.attempt, failure.text)
        return accepted(call.message_id, dead=True)

    def _exhausted(self, message: Waiting) -> None:
        error = message.last_error or _UNREPORTED
        self._bury(message.fields[headers.TARGET], message, _EXHAUSTED, message.deliveries, error)

    def _bury(self, agent: str, message: Waiting, reason: str, attempts: int, error: str) -> None:
        fields = message.fields
        op = Op.REQUEST if headers.REPLY_TOKEN in fields else Op.SEND
        seen = SentMessage(
            str(op),
            fields[headers.MESSAGE_ID],
            fields[headers.SENDER],
            agent,
            fields[headers.TYPE],
            orjson.loads(message.body),
        )
        self.ledger.dead[agent].append(DeadLetter(seen, reason, attempts, error[:300], message.body))
        self.consumers[agent].remove(message.sequence)
        capability = self.replies.waiting(fields.get(headers.REPLY_TOKEN, ""))
        if capability is not None:
            told = {
                headers.MESSAGE_ID: capability.message_id,
                headers.SENDER: agent,
                headers.SENT: str(int(self._now() * 1000)),
                headers.FAILURE: Decision.DEAD,
            }
            text = f"{agent} could not handle the request ({reason})"
            self.replies.store(capability.answer(), orjson.dumps({"reason": text}), told)

    # -- the record --------------------------------------------------------------------------------

    def _decided(
        self, call: Call, decision: Decision, step: str = "", rule: str = "", reason: str = ""
    ) -> str:
        self.ledger.decisions.append(
            SeenDecision(
                call.op, call.sender, call.target, call.type, call.message_id, decision, step, rule, reason
            )
        )
        return f"memory.{len(self.ledger.decisions)}.0"


def _seen(call: Call) -> SentMessage:
    data = orjson.loads(call.body)
    return SentMessage(str(call.op), call.message_id, call.sender, call.target, call.type, data)
