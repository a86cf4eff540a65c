"""One call of an agent, as the pipeline sees it: what was read from it, never more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict

_MOST_TYPES = 16
"""Types that are named in one decision: all that are built in, and some of one's own."""
_LONGEST = headers.MAX_VALUE_BYTES
# Which attribute of a call a header goes into.
_TEXTS = {
    headers.MSG_ID: "message_id",
    headers.TARGET: "target",
    headers.TYPE: "type",
    headers.INSTANCE: "instance",
    headers.REPLY_TOKEN: "reply_token",
    headers.TRACEPARENT: "traceparent",
    headers.TRACESTATE: "tracestate",
}
_MILLISECONDS = {headers.DEADLINE: "deadline", headers.DUE: "due_at", headers.DELAY: "delay"}
_FLAGS = {headers.STREAM: "stream", headers.REPEATED: "repeated"}


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Errand:
    """What an operator does with a message, in its sender's stead."""

    by: str  # who asked: what the operator says of itself
    letter: int = 0  # the dead letter's sequence; 0: it is none
    attempt: int = 0  # counts the dedup ids that the audit has closed (``audit.probe``)
    sent: str = ""  # when the message was sent first
    redrives: int = 0  # how often it will have been redriven

    @property
    def reference(self) -> str:
        """The dead letter, and where it is not the first the attempt, as the audit names them."""
        if not self.letter:
            return ""
        return f"{self.letter}.{self.attempt}" if self.attempt else str(self.letter)


@dataclass(frozen=True, slots=True)
class Finding:
    """What data-loss prevention found in a call that it lets pass: ``ALERT``, or ``DLP_REDACTED``."""

    decision: Decision
    types: tuple[str, ...]

    @property
    def rule(self) -> str:
        """The types as they stand in the audit."""
        more = len(self.types) - _MOST_TYPES
        return "dlp:" + ",".join(self.types[:_MOST_TYPES]) + (f",+{more}" if more > 0 else "")

    def with_earlier(self, earlier: Finding | None) -> Finding:
        """Both, where a call is judged a second time: what was redacted is not found again."""
        if earlier is None:
            return self
        redacted = Decision.DLP_REDACTED in (self.decision, earlier.decision)
        types = tuple(sorted({*self.types, *earlier.types}))
        return Finding(Decision.DLP_REDACTED if redacted else Decision.ALERT, types)


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
    due_at: int = 0  # unix milliseconds; 0: not said
    delay: int = -1  # milliseconds; negative: not said
    instance: str = ""
    reply_token: str = ""
    stream: bool = False  # the requester can take its answer in frames
    repeated: bool = False  # its sender says that it asked before and was not answered
    traceparent: str = ""
    tracestate: str = ""
    malformed: str = ""  # why the headers could not be read
    crosses: bool = False  # a worker takes it to the namespace that its target names
    origin: str = ""  # the namespace from which a worker brought it; then ``sender`` is namespace/agent
    certificate: str = ""  # SHA-256 of the sender's, where it came from another namespace
    errand: Errand | None = None
    admitted: bool = False  # counted by the rate limits: what is judged again is not counted again
    finding: Finding | None = None
    searched: object = None  # what data-loss prevention found out about its content before its turn
    probe: bool = False  # let through to see what becomes of it: its target's circuit is half open
    on_verdict: Callable[[Verdict], None] | None = None  # who waits in this process, instead of ``reply_to``
    bundle: Any = (
        None  # the bundle in which it came, which collects the verdicts (``broker_policy.calls.bundles``)
    )
    watched: Any = None  # who measures its way through a worker (``broker_policy.telemetry``)
    received: int = field(default_factory=_now)

    @classmethod
    def read(cls, message: Any, received: int | None = None) -> Call:
        """Read a NATS message: its subject, its body, and the headers that agents may set.

        ``received`` in unix milliseconds; by this machine's clock when not given.
        """
        _, _, sender, op = message.subject.split(".", 3)
        return cls.of(sender, op, message.data, message.reply, message.headers or {}, received)

    @classmethod
    def of(
        cls,
        sender: str,
        op: str,
        body: bytes,
        reply_to: str,
        fields: Mapping[str, str],
        received: int | None = None,
    ) -> Call:
        """Read a call of which subject, body and headers are known."""
        call = cls(sender, op, body, reply_to, received=_now() if received is None else received)
        for name, value in fields.items():
            if (attribute := _TEXTS.get(name)) is not None:
                setattr(call, attribute, value if len(value) <= _LONGEST else call._cut(name, value))
            elif (attribute := _MILLISECONDS.get(name)) is not None:
                setattr(call, attribute, call._milliseconds(name, value))
            elif (attribute := _FLAGS.get(name)) is not None:
                setattr(call, attribute, value == "1")
        return call

    def awaited(self) -> asyncio.Future[Verdict]:
        """The verdict, when it comes: whoever asks waits for it in this process."""
        told: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.on_verdict = lambda verdict: None if told.done() else told.set_result(verdict)
        return told

    @property
    def due(self) -> int:
        """When a delayed message shall be delivered, in unix milliseconds; 0 where it does not say."""
        return self.due_at if self.delay < 0 else self.received + self.delay

    def _milliseconds(self, name: str, value: str) -> int:
        if len(value) > _LONGEST:
            value = self._cut(name, value)
        if value.isascii() and value.isdecimal() and len(value) < 16:
            return int(value)
        if value:
            self.malformed = f"{name} is not a number of milliseconds"
        return 0

    def _cut(self, name: str, value: str) -> str:
        """What is kept of a header's value that is longer than one may be."""
        self.malformed = f"{name} has more than {_LONGEST} characters"
        return value[: headers.MAX_ID_BYTES]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step's no: what, which rule, why, and what to do."""

    decision: Decision
    step: str
    rule: str
    reason: str
    fix: str = ""
    retry: bool = False
    retry_after: float = 0.0  # seconds until it may succeed; 0: not known

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
            retry_after=self.retry_after,
        )
