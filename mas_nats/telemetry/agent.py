"""The telemetry of an agent instance, by OpenTelemetry's conventions for messaging.

Exceptions leave only the name of their class: their text may hold what a message held.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mas_nats.errors import Refused, RequestFailed, StreamCancelled
from mas_nats.message import AgentMessage
from mas_nats.telemetry import names
from mas_nats.telemetry.instruments import counter, histogram
from mas_nats.telemetry.names import OperationType
from mas_nats.wire import subjects
from mas_nats.wire.identity import agent_of
from mas_nats.wire.subjects import Op

_PROPAGATOR = TraceContextTextMapPropagator()
_CONVERSING = frozenset({Op.REQUEST, Op.REPLY})
Attributes = dict[str, str | int | bool]


class _Providers(Protocol):
    @property
    def tracers(self) -> trace.TracerProvider: ...
    @property
    def meters(self) -> metrics.MeterProvider: ...
    def flush(self) -> Awaitable[None]: ...


def of_application(agent: str, namespace: Callable[[], str]) -> Watched:
    """What goes where the program has said that its telemetry goes; it flushes it itself."""
    return Watched(agent, namespace, trace.get_tracer_provider(), metrics.get_meter_provider(), None)


def of_providers(agent: str, namespace: Callable[[], str], providers: _Providers) -> Watched:
    """What goes to ``providers``."""
    return Watched(agent, namespace, providers.tracers, providers.meters, providers.flush)


class Watched:
    """Traces and measures one instance: see ``watching.Telemetry``."""

    def __init__(
        self,
        agent: str,
        namespace: Callable[[], str],
        tracers: trace.TracerProvider,
        meters: metrics.MeterProvider,
        flush: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._agent = agent
        self._namespace = namespace
        self._flush = flush
        self.tracer = tracers.get_tracer(names.SCOPE)
        meter = meters.get_meter(names.SCOPE)
        self.duration = histogram(meter, names.OPERATION_DURATION)
        self.sent = counter(meter, names.SENT)
        self.consumed = counter(meter, names.CONSUMED)
        self.process = histogram(meter, names.PROCESS_DURATION)

    def sending(
        self,
        op: str,
        target: str,
        message_type: str,
        message_id: str,
        *,
        made_id: bool = False,
        answers: AgentMessage | None = None,
    ) -> _Sending:
        """See ``watching.Telemetry``."""
        template = names.INBOX_TEMPLATE if answers is None else names.REPLY_TEMPLATE
        common = _common(op, OperationType.SEND, template)
        mine: Attributes = {names.AGENT: self._agent, names.NAMESPACE: self._namespace()}
        later: Attributes = {names.MESSAGE_TYPE: message_type, names.TARGET: target}
        if answers is None:
            later[names.DESTINATION] = subjects.inbox(agent_of(target))
        else:
            mine[names.TEMPORARY] = True
            later[names.DESTINATION] = f"mas.reply.{agent_of(target)}"
            later[names.CONVERSATION] = answers.message_id
        ids = mine if made_id else later
        ids[names.MESSAGE_ID] = message_id
        if op == Op.REQUEST:
            ids[names.CONVERSATION] = message_id
        context = None
        if answers is not None and not trace.get_current_span().get_span_context().is_valid:
            context = answers.course.trace  # a reply from outside the handler's task still belongs to it
        return _Sending(self, common, mine, later, context)

    @contextmanager
    def processing(
        self, message: AgentMessage, headers: Mapping[str, str], received: float
    ) -> Iterator[None]:
        """See ``watching.Telemetry``."""
        context = _PROPAGATOR.extract(headers)
        common = _common("process", OperationType.PROCESS, names.INBOX_TEMPLATE)
        attributes: Attributes = {
            names.AGENT: self._agent,
            names.NAMESPACE: self._namespace(),
            names.DESTINATION: subjects.inbox(self._agent),
            names.MESSAGE_ID: message.message_id,
            names.MESSAGE_TYPE: message.message_type,
            names.SENDER: message.sender,
            names.ATTEMPT: message.attempt,
            names.AUDIT: message.audit,
        }
        if message.expects_reply:
            attributes[names.CONVERSATION] = message.message_id
        self._delivered(context, attributes, received - message.sent_at.timestamp())
        span = self.tracer.start_span(
            f"process {names.INBOX_TEMPLATE}",
            context,
            SpanKind.CONSUMER,
            attributes={**common, **attributes},
        )
        message.course.trace = trace.set_span_in_context(span, Context())
        begun = time.perf_counter()
        failed: BaseException | None = None
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            failed = None if isinstance(error, StreamCancelled) else error
            raise
        finally:
            said = {**common, **_failure(span, failed)}
            self.process.record(time.perf_counter() - begun, said, message.course.trace)
            span.end()

    def _delivered(self, context: Context, attributes: Attributes, waited: float) -> None:
        """The time in the inbox, as a span: from the moment the policy service took the message."""
        common = _common("deliver", OperationType.RECEIVE, names.INBOX_TEMPLATE)
        self.consumed.add(1, common)
        now = time.time_ns()
        self.tracer.start_span(
            f"deliver {names.INBOX_TEMPLATE}",
            context,
            SpanKind.CLIENT,
            attributes={**common, **attributes},
            start_time=now - max(0, round(waited * 1e9)),
        ).end(now)

    async def flush(self) -> None:
        """See ``watching.Telemetry``."""
        if self._flush is not None:
            await self._flush()


class _Sending:
    """See ``watching.Sending``."""

    def __init__(
        self, watched: Watched, common: Attributes, mine: Attributes, later: Attributes, context: Any
    ) -> None:
        self._watched = watched
        self._common = common
        self._mine = mine
        self._later = later
        self._context = context
        self._span: Span = trace.INVALID_SPAN
        self._begun = 0.0
        self.headers: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        name = f"{self._common[names.OPERATION]} {self._common[names.TEMPLATE]}"
        self._span = self._watched.tracer.start_span(
            name, self._context, SpanKind.PRODUCER, attributes={**self._common, **self._mine}
        )
        self._context = trace.set_span_in_context(self._span, self._context)
        _PROPAGATOR.inject(self.headers, self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = isinstance(error, (StreamCancelled, GeneratorExit))
        said = {**self._common, **_failure(self._span, None if left else error)}
        self._watched.duration.record(time.perf_counter() - self._begun, said, self._context)
        self._watched.sent.add(1, said, self._context)
        self._span.end()

    def accepted(self) -> None:
        """See ``watching.Sending``."""
        self._span.set_attributes(self._later)

    def answered(self, headers: Mapping[str, str]) -> None:
        """See ``watching.Sending``: a link, since the reply has a parent of its own."""
        self._watched.consumed.add(
            1, _common("receive", OperationType.RECEIVE, names.REPLY_TEMPLATE), self._context
        )
        replied = trace.get_current_span(_PROPAGATOR.extract(headers, Context())).get_span_context()
        if replied.is_valid:
            self._span.add_link(replied)


def _common(operation: str, kind: OperationType, template: str) -> Attributes:
    """What metrics are told apart by, and spans have too."""
    return {
        names.SYSTEM: names.NATS,
        names.OPERATION: str(operation),
        names.OPERATION_TYPE: str(kind),
        names.TEMPLATE: template,
    }


def _failure(span: Span, error: BaseException | None) -> Attributes:
    """Mark ``span`` as failed; what a metric says of it."""
    if error is None:
        return {}
    kind = str(error.decision) if isinstance(error, (Refused, RequestFailed)) else type(error).__name__
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute(names.ERROR, kind)
    return {names.ERROR: kind}
