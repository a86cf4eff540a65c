"""The policy service of the in-memory broker: it decides with ``mas_nats.policy`` and commits to memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.document import Document, Limits
from mas_nats.policy.instances import Instances
from mas_nats.policy.presence import MAX_HELLO_BYTES, Bye, Discover, Hello, terms
from mas_nats.policy.prompt import LLM_RULE, prompt
from mas_nats.policy.shape import well_formed
from mas_nats.policy.shares import most_for_one
from mas_nats.policy.state_call import BadStateCall, StateCall
from mas_nats.policy.table import Table
from mas_nats.testing.answers import Answers
from mas_nats.testing.consumer import Consumer, Waiting
from mas_nats.testing.crossing import Crossing
from mas_nats.testing.deciding import ROOM, Deciding, seen
from mas_nats.testing.delayed import Delayed
from mas_nats.testing.graves import Graves
from mas_nats.testing.replies import Replies
from mas_nats.testing.states import Conflict, Reused, StateBucket
from mas_nats.transport import Incoming
from mas_nats.wire import headers
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict, accepted


class MemoryService:
    """One namespace. ``now`` is unix time in seconds; ``publish`` gets every reply.

    ``neighbours`` are the ways into all namespaces; this one adds its own.
    """

    def __init__(
        self,
        document: Document,
        *,
        now: Callable[[], float],
        publish: Callable[[Incoming], None],
        neighbours: dict[str, Crossing],
    ) -> None:
        self.deciding = Deciding(Table.compile(document, 1), now)
        self.states = StateBucket()
        self.instances = Instances(asyncio.get_running_loop().time)
        self.consumers: dict[str, Consumer] = {}
        self.replies = Replies(document.namespace, now, publish, lambda other: neighbours[other].replies)
        self._graves = Graves(self.consumers, self.deciding, self.replies)
        self._delayed = Delayed(self.deciding, self._message)
        self._crossing = Crossing(self.deciding, self.replies, self._message, neighbours)
        neighbours[document.namespace] = self._crossing
        answers = Answers(self.replies, self.deciding, publish, self._crossing.reply)
        self.apply(document)
        self._sequences = itertools.count(1)
        self._names = itertools.count(1)
        self._given: set[tuple[str, str]] = set()
        self._known: dict[tuple[str, str], tuple[str, str, bytes]] = {}
        self._operations: dict[str, Callable[[Call], Verdict]] = {
            Op.HELLO: self._hello,
            Op.BYE: self._bye,
            Op.DISCOVER: self._discover,
            Op.SEND: self._message,
            Op.REQUEST: self._message,
            Op.REPLY: answers.reply,
            Op.FRAME: answers.frame,
            Op.FLOW: answers.flow,
            Op.CANCEL: answers.cancel,
            Op.STATE: self._state,
            Op.FAIL: self._graves.report,
            Op.DELAY: self._delay,
            Op.WITHDRAW: self._delayed.withdraw,
            Op.PROMPT: self._prompt,
        }

    def apply(self, document: Document) -> None:
        """Judge under ``document`` from here on."""
        self.deciding.table = Table.compile(document, 1)
        for agent in document.agents:
            if agent not in self.consumers:
                self.consumers[agent] = Consumer(agent, self._limits, self._graves.exhausted)
        for removed in self.consumers.keys() - document.agents.keys():
            self._graves.clear(removed)

    def _limits(self) -> Limits:
        return self.deciding.table.limits

    def close(self) -> None:
        """End every timer."""
        for consumer in self.consumers.values():
            consumer.close()
        self._delayed.close()

    def take(self, call: Call) -> Verdict:
        """Decide about a call, do it, and say what came of it."""
        operation = self._operations.get(call.op)
        if operation is None:
            text = f"there is no call {call.op[:40]!r}"
            return refusals.invalid("op", text).verdict(call.message_id)
        if self.deciding.table.agent(call.sender) is None:
            return self.deciding.refuse(call, refusals.unknown_sender(call.sender))
        return operation(call)

    # -- presence ----------------------------------------------------------------------------------

    def _hello(self, call: Call) -> Verdict:
        if len(call.body) > MAX_HELLO_BYTES:
            text = f"capabilities and metadata exceed {MAX_HELLO_BYTES} bytes"
            return refusals.invalid("metadata", text, "Announce less").verdict(call.message_id)
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
        told = terms(self.deciding.table, call.sender, instance, ROOM)
        return accepted(call.message_id, **told, retry_spread=0.0)

    def _bye(self, call: Call) -> Verdict:
        try:
            instance = Bye.model_validate_json(call.body).instance
        except ValidationError:
            return refusals.invalid("bye", "a bye needs the instance").verdict(call.message_id)
        self.instances.withdraw(call.sender, instance)
        return accepted(call.message_id)

    def _discover(self, call: Call) -> Verdict:
        try:
            wanted = Discover.model_validate_json(call.body).capabilities
        except ValidationError:
            text = "discover needs a list of capabilities"
            return refusals.invalid("discover", text).verdict(call.message_id)
        return accepted(
            call.message_id, agents=self.instances.discover(call.sender, wanted, self.deciding.table)
        )

    # -- messages ----------------------------------------------------------------------------------

    def _delay(self, call: Call) -> Verdict:
        refused = self._crossing.refused(call) if self._crossing.concerns(call) else None
        return refused or self._delayed.delay(call)

    def _message(self, call: Call) -> Verdict:
        if self._crossing.concerns(call):
            return self._crossing.take(call)
        if (refusal := self.deciding.judge(call)) is not None:
            return self.deciding.refuse(call, refusal)
        content = (call.target, call.type, call.body)
        if (known := self._known.get((call.sender, call.message_id))) is not None:
            if known != content:
                return self.deciding.refuse(call, refusals.id_reused())
            self.deciding.allow(call, "duplicate")
            return accepted(call.message_id, duplicate=True)
        if (full := self._full(call)) is not None:
            return self.deciding.refuse(call, full)
        fields = self.deciding.envelope(call) | {
            headers.TARGET: call.target,
            headers.AUDIT: self.deciding.allow(call, "permissions"),
        }
        if call.op == Op.REQUEST:
            fields[headers.DEADLINE] = str(call.deadline)
            fields[headers.REPLY_TOKEN] = self.replies.grant(call)
            if call.stream:
                fields[headers.STREAM] = "1"
        self._known[call.sender, call.message_id] = content
        self.deciding.ledger.sent.append(seen(call))
        self.consumers[call.target].put(Waiting(next(self._sequences), fields, call.body))
        return accepted(call.message_id)

    def _full(self, call: Call) -> Refusal | None:
        limits, waiting = self._limits(), self.consumers[call.target].messages
        if len(waiting) >= limits.inbox_messages:
            return refusals.inbox_full(call.target)
        held = {agent: _bytes(consumer.messages.values()) for agent, consumer in self.consumers.items()}
        used = sum(held.values())
        most = most_for_one(used, limits.log_bytes)
        if most is not None and held[call.target] > most:
            return refusals.inbox_bytes(call.target)
        return refusals.log_full() if used + len(call.body) > limits.log_bytes else None

    def _prompt(self, call: Call) -> Verdict:
        if (refusal := prompt(call, self.deciding.table, ROOM)) is not None:
            return self.deciding.refuse(call, refusal)
        self.deciding.allow(call, LLM_RULE)
        return accepted(call.message_id)

    # -- state -------------------------------------------------------------------------------------

    def _state(self, call: Call) -> Verdict:
        call.target, call.type = call.sender, "state"
        if (refusal := well_formed(call)) is not None:
            return self.deciding.refuse(call, refusal)
        try:
            wanted = StateCall.read(call.body, min(self._limits().max_state, ROOM))
        except BadStateCall as error:
            return self.deciding.refuse(call, refusals.invalid("state", str(error)))
        if wanted.op == "get":
            newest, value = self.states.newest(call.sender), self.states.value(call.sender)
            revision = newest.number if newest else 0
            corrupt = newest is not None and bool(newest.body) and value is None
            return accepted(call.message_id, revision=revision, value=value, corrupt=corrupt)
        self.deciding.allow(call, "own_state")
        try:
            revision = self.states.mediated(call.sender, wanted, call.message_id)
        except Conflict:
            return refusals.state_conflict(call.sender).verdict(call.message_id)
        except Reused:
            return refusals.id_reused().verdict(call.message_id)
        return accepted(call.message_id, revision=revision)


def _bytes(messages: Iterable[Waiting]) -> int:
    return sum(len(each.body) for each in messages)
