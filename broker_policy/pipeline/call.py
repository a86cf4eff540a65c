"""One call of an agent, as the pipeline sees it: what was read from it, never more."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict


@dataclass(slots=True)
class Call:
    """A call to ``mas.call.<sender>.<op>``.

    The sender comes from the subject, which the sender's account fixes; everything else is hostile until
    a step has accepted it.
    """

    sender: str
    op: str
    body: bytes
    reply_to: str
    message_id: str = ""
    target: str = ""
    type: str = ""
    deadline: int = 0  # unix milliseconds; 0: none
    instance: str = ""
    reply_token: str = ""
    traceparent: str = ""
    tracestate: str = ""
    malformed: str = ""  # why the headers could not be read
    received: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    @classmethod
    def read(cls, message: Any) -> Call:
        """Read a NATS message: its subject, its body, and the headers that agents may set."""
        _, _, sender, op = message.subject.split(".", 3)
        call = cls(sender, op, message.data, message.reply)
        if fields := message.headers:
            call.message_id = fields.get(headers.MSG_ID, "")
            call.target = fields.get(headers.TARGET, "")
            call.type = fields.get(headers.TYPE, "")
            call.instance = fields.get(headers.INSTANCE, "")
            call.reply_token = fields.get(headers.REPLY_TOKEN, "")
            call.traceparent = fields.get(headers.TRACEPARENT, "")
            call.tracestate = fields.get(headers.TRACESTATE, "")
            deadline = fields.get(headers.DEADLINE, "")
            if deadline.isascii() and deadline.isdecimal() and len(deadline) < 16:
                call.deadline = int(deadline)
            elif deadline:
                call.malformed = f"{headers.DEADLINE} is not a unix time in milliseconds"
        return call


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step's no: what, which rule, why, and what to do."""

    decision: Decision
    step: str
    rule: str
    reason: str
    fix: str = ""
    retry: bool = False

    def verdict(self, message_id: str) -> Verdict:
        """The refusal as the caller gets it."""
        return Verdict(
            self.decision,
            ok=False,
            message_id=message_id,
            step=self.step,
            rule=self.rule,
            reason=self.reason,
            fix=self.fix,
            retry=self.retry,
        )
