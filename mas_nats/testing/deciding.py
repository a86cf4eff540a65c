"""How the in-memory service decides, and what it keeps of it for the test to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from mas_nats.policy import refusals
from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import shape
from mas_nats.policy.table import Table
from mas_nats.testing.seen import DeadLetter, SeenDecision, SentMessage
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict

MAX_PAYLOAD = 2 << 20
"""Bytes that the server of ``mas up`` takes, headers included."""
ROOM = MAX_PAYLOAD - 8_192
"""Bytes of a body that it carries with its headers."""


@dataclass(slots=True)
class Ledger:
    """Everything that happened, in its order."""

    sent: list[SentMessage] = field(default_factory=list)
    replies: list[SentMessage] = field(default_factory=list)
    decisions: list[SeenDecision] = field(default_factory=list)
    dead: dict[str, list[DeadLetter]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Deciding:
    """Decides under ``table``. ``now`` is unix time in seconds."""

    table: Table
    now: Callable[[], float]
    ledger: Ledger = field(default_factory=Ledger)

    def judge(self, call: Call) -> Refusal | None:
        """What the pipeline has against ``call``."""
        if len(call.body) > ROOM:
            return refusals.too_large(len(call.body), ROOM)
        return shape(call, self.table) or authorize(call, self.table)

    def refuse(self, call: Call, refusal: Refusal) -> Verdict:
        """Note a refusal and tell it."""
        self._note(call, refusal.decision, refusal.step, refusal.rule, refusal.reason)
        return refusal.verdict(call.message_id)

    def note(self, call: Call, verdict: Verdict) -> None:
        """Note what another namespace refused."""
        self._note(call, verdict.decision, verdict.step, verdict.rule, verdict.reason)

    def allow(self, call: Call, rule: str) -> str:
        """Note that ``rule`` allows ``call``; the decision's name."""
        return self._note(call, Decision.ALLOWED, "", rule, "")

    def envelope(self, call: Call) -> dict[str, str]:
        """The headers of what goes out, made from nothing (DESIGN 4)."""
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

    def _note(self, call: Call, decision: Decision, step: str, rule: str, reason: str) -> str:
        self.ledger.decisions.append(
            SeenDecision(
                call.op, call.sender, call.target, call.type, call.message_id, decision, step, rule, reason
            )
        )
        return f"memory.{len(self.ledger.decisions)}.0"


def seen(call: Call) -> SentMessage:
    """A call as the test sees it."""
    data = orjson.loads(call.body)
    return SentMessage(str(call.op), call.message_id, call.sender, call.target, call.type, data)
