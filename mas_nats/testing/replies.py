"""The right to answer a request, and the answers that are kept for a requester that reconnects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import CLOCK_TOLERANCE_MS
from mas_nats.transport import Incoming
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.identity import agent_of
from mas_nats.wire.verdict import Decision

_AGE = 120.0
"""Seconds for which a reply can be fetched, and its repetition recognised."""


@dataclass(frozen=True, slots=True)
class Capability:
    """The right of ``target`` to answer one request until ``deadline`` (unix milliseconds)."""

    requester: str
    instance: str
    target: str
    message_id: str
    deadline: int
    stream: bool = False  # the answer may come in frames
    namespace: str = ""  # of the requester, where that is another one
    asked: str = ""  # the namespace of the target then

    @property
    def answerer(self) -> str:
        """Who answers, as the requester calls it."""
        return f"{self.asked}/{self.target}" if self.asked else self.target

    def answer(self, frame: int = 0) -> str:
        """Where the answer is stored."""
        token = correlation(self.message_id, self.asked)
        return subjects.answer(self.requester, self.instance, token, frame)


@dataclass(slots=True)
class Replies:
    """``now`` is unix time in seconds; ``publish`` gets each reply once.

    ``neighbour``: the same of another namespace.
    """

    namespace: str
    now: Callable[[], float]
    publish: Callable[[Incoming], None]
    neighbour: Callable[[str], Replies]
    _capabilities: dict[str, Capability] = field(default_factory=dict)
    _stored: dict[str, tuple[float, Incoming]] = field(default_factory=dict)

    def grant(self, call: Call) -> str:
        """A token for the target of the request ``call``."""
        token = f"memory-{self.namespace}-{len(self._capabilities) + 1}"
        self._capabilities[token] = Capability(
            agent_of(call.sender),
            call.instance,
            call.target,
            call.message_id,
            call.deadline,
            call.stream,
            call.origin,
            self.namespace if call.origin else "",
        )
        return token

    def capability(self, call: Call) -> Capability | Refusal:
        """What the call's token allows its sender, or why it allows nothing."""
        capability = self._capabilities.get(call.reply_token)
        if capability is None:
            return refusals.reply_foreign("the reply token is not one that this system sealed")
        if capability.target != call.sender:
            return refusals.reply_foreign(f"{call.sender} is not the agent that was asked")
        if call.received > capability.deadline + CLOCK_TOLERANCE_MS:
            return refusals.reply_late()
        return capability

    def waiting(self, token: str) -> Capability | None:
        """The capability behind ``token`` while its requester still waits."""
        capability = self._capabilities.get(token)
        return capability if capability and self.now() * 1000 <= capability.deadline else None

    def store(self, subject: str, body: bytes, fields: dict[str, str]) -> bool:
        """Store an answer and say it to the requester; False when it was answered before."""
        if self.fetch(subject) is not None:
            return False
        said = Incoming(subject.replace("mas.answer.", "mas.reply.", 1), "", fields, body)
        self._stored[subject] = (self.now(), said)
        self.publish(said)
        return True

    def fetch(self, subject: str) -> Incoming | None:
        """A stored answer."""
        stored, answer = self._stored.get(subject, (0.0, None))
        return answer if answer is not None and self.now() - stored <= _AGE else None

    def give_up(self, capability: Capability, decision: Decision, reason: str) -> None:
        """Tell the requester that there will be no reply, or no more of it; not where it has all of it."""
        if capability.namespace not in ("", self.namespace):
            self.neighbour(capability.namespace).give_up(capability, decision, reason)
            return
        if self.now() * 1000 > capability.deadline:
            return
        fields = {
            headers.MESSAGE_ID: capability.message_id,
            headers.SENDER: capability.answerer,
            headers.SENT: str(int(self.now() * 1000)),
            headers.FAILURE: decision,
        }
        number = 0
        while (there := self.fetch(capability.answer(number))) is not None:
            if ended(there):
                return
            number += 1
        self.store(capability.answer(number), orjson.dumps({"reason": reason}), fields)

    def forget(self) -> None:
        """They live in memory, and are gone when the server is."""
        self._stored.clear()


def ended(answer: Incoming) -> bool:
    """Whether nothing follows ``answer``: it is the last frame, a whole reply, or says that there is none."""
    fields = answer.headers
    return headers.FRAME not in fields or headers.END in fields or headers.FAILURE in fields
