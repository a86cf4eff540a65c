"""Calls as spans: one for the call, and one each for its decision, its audit and its commit.

What is said of a call is what the audit says of it: data-loss prevention has cleaned it. A call that its
sender does not trace (the flag in ``traceparent``) leaves no span, whatever the sampler would say; one
without a trace begins one here, so that its handler and its reply are in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.telemetry.meters import Meters
from mas_nats.policy.call import Call
from mas_nats.telemetry import names
from mas_nats.wire import headers
from mas_nats.wire.subjects import RELEASE, Op
from mas_nats.wire.verdict import Verdict

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACED = frozenset({Op.SEND, Op.REQUEST, Op.REPLY, Op.FRAME, Op.DELAY, RELEASE})
"""Calls that are spans; what keeps an agent alive is none."""
_UNSAMPLED = frozenset("02468ace")  # how flags end without the bit "sampled"
Attributes = dict[str, str | int | bool]


class Spans:
    """Makes the spans of one namespace in one worker."""

    def __init__(self, tracer: Tracer, meters: Meters, namespace: str) -> None:
        self.tracer = tracer
        self.meters = meters
        self.namespace = namespace

    def arrived(self, call: Call) -> TracedCall:
        """See ``watching.Watch``."""
        traced = TracedCall(self, call.op)
        if call.op in _TRACED and call.traceparent[-1:] not in _UNSAMPLED:
            traced.begin(call)
        return traced

    def batched(self, calls: Sequence[TracedCall], begun: float) -> None:
        """See ``watching.Watch``: a trace of its own, linked with those of what it carried."""
        sampled = [call for call in calls if call.sampled]
        if not sampled:
            return
        now = time.time_ns()
        span = self.tracer.start_span(
            names.BATCH_SPAN,
            Context(),
            links=[Link(call.context) for call in sampled],
            attributes={names.NAMESPACE: self.namespace, names.BATCH_COUNT: len(calls)},
            start_time=now - _nanoseconds(begun),
        )
        span.end(now)
        for call in sampled:
            call.batch = span.get_span_context()


class TracedCall:
    """See ``watching.WatchedCall``."""

    __slots__ = (
        "_arrived",
        "_begun",
        "_decided",
        "_line",
        "_op",
        "_recorded",
        "_reference",
        "_span",
        "_spans",
        "batch",
    )

    def __init__(self, spans: Spans, op: str) -> None:
        self._spans = spans
        self._op = op
        self._span: trace.Span = trace.INVALID_SPAN
        self._arrived = time.time_ns()
        self._begun = time.perf_counter()
        self._decided = self._recorded = 0.0
        self._line: DecisionLine | None = None
        self._reference = ""
        self.batch: SpanContext | None = None

    @property
    def sampled(self) -> bool:
        """Whether it is a span that is kept."""
        return self._span.is_recording()

    @property
    def context(self) -> SpanContext:
        """By which others name it."""
        return self._span.get_span_context()

    def begin(self, call: Call) -> None:
        """Open the span, as a child of what the sender says.

        Its ``tracestate`` is passed on and not exported: it is any text, and nobody has looked at it yet.
        """
        context = _PROPAGATOR.extract({headers.TRACEPARENT: call.traceparent}, Context())
        self._span = self._spans.tracer.start_span(
            f"{names.POLICY_SPAN} {call.op}",
            context,
            SpanKind.SERVER,
            attributes={
                names.SYSTEM: names.NATS,
                names.NAMESPACE: self._spans.namespace,
                names.OP: call.op,
                names.SENDER: call.sender,
            },
            start_time=self._arrived,
        )
        if not trace.get_current_span(context).get_span_context().is_valid:
            carried: dict[str, str] = {}
            _PROPAGATOR.inject(carried, trace.set_span_in_context(self._span, Context()))
            call.traceparent = carried.get(headers.TRACEPARENT, "")
            call.tracestate = ""

    def decided(self, line: DecisionLine) -> None:
        """See ``watching.WatchedCall``; the last time counts."""
        self._line, self._decided = line, time.perf_counter()

    def recorded(self, reference: str) -> None:
        """See ``watching.WatchedCall``."""
        self._reference, self._recorded = reference, time.perf_counter()

    def answered(self, verdict: Verdict) -> None:
        """See ``watching.WatchedCall``."""
        now = time.perf_counter()
        self._spans.meters.answered(self._op, now - self._begun)
        if not self.sampled:
            return
        if self._line is not None:
            self._describe(self._line)
            self._step(names.DECIDE_SPAN, self._begun, self._decided)
            if self._recorded:
                self._committed(self._line, now)
        self._span.set_attribute(names.DECISION, str(verdict.decision))
        if not verdict.ok:
            self._span.set_attribute(names.ERROR, str(verdict.decision))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._at(now))

    def _at(self, moment: float) -> int:
        """A moment of the performance counter as unix time, in nanoseconds, whatever the clock does since."""
        return self._arrived + round((moment - self._begun) * 1e9)

    def _describe(self, line: DecisionLine) -> None:
        said: Attributes = {
            names.MESSAGE_ID: line.message_id,
            names.TARGET: line.target,
            names.MESSAGE_TYPE: line.type,
            names.RULE: line.rule,
        }
        if line.op == Op.REQUEST:
            said[names.CONVERSATION] = line.message_id
        self._span.set_attributes(said)

    def _committed(self, line: DecisionLine, now: float) -> None:
        said: Attributes = {names.AUDIT: self._reference}
        self._step(names.AUDIT_SPAN, self._decided, self._recorded, said)
        if line.way is Way.NONE:
            return
        # In a batch they are one and the same: the record is at its head.
        since, until = (self._recorded, now) if self.batch is None else (self._decided, self._recorded)
        self._step(names.COMMIT_SPAN, since, until, said)

    def _step(self, name: str, since: float, until: float, said: Attributes | None = None) -> None:
        """A span below the call's; those that ``said`` something are linked with the batch."""
        linked = [Link(self.batch)] if self.batch is not None and said else None
        self._spans.tracer.start_span(
            name,
            trace.set_span_in_context(self._span, Context()),
            links=linked,
            attributes={names.NAMESPACE: self._spans.namespace, **(said or {})},
            start_time=self._at(since),
        ).end(self._at(until))


def _nanoseconds(begun: float) -> int:
    """Since a moment of the performance counter."""
    return round((time.perf_counter() - begun) * 1e9)
