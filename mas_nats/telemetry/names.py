"""Every name of a span, an attribute and a metric, in one place.

Where OpenTelemetry has a convention for messaging (semantic conventions 1.45, in development) its names are
used; what it has none for begins with ``mas.``. ``ATTRIBUTES`` is the list of what may ever be exported: no
attribute is made of a payload, an error's text, a token or a header that an agent can fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SCOPE = "mas_nats"
"""The name of tracer and meter."""

# -- attributes, by convention ---------------------------------------------------------------------
SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
TEMPLATE = "messaging.destination.template"
TEMPORARY = "messaging.destination.temporary"
MESSAGE_ID = "messaging.message.id"
CONVERSATION = "messaging.message.conversation_id"
BATCH_COUNT = "messaging.batch.message_count"
ERROR = "error.type"

# -- attributes of our own -------------------------------------------------------------------------
NAMESPACE = "mas.namespace"
AGENT = "mas.agent"  # whose program this is
SENDER = "mas.sender"
TARGET = "mas.target"
MESSAGE_TYPE = "mas.message.type"
ATTEMPT = "mas.delivery.attempt"
AUDIT = "mas.audit"  # the decision in the audit: <writer>.<record>.<position>
OP = "mas.operation"  # what the policy service was asked for
DECISION = "mas.decision"
RULE = "mas.rule"
REVISION = "mas.policy.revision"
WAY = "mas.commit.way"
STATE = "mas.circuit.state"

ATTRIBUTES = frozenset(
    {
        SYSTEM,
        OPERATION,
        OPERATION_TYPE,
        DESTINATION,
        TEMPLATE,
        TEMPORARY,
        MESSAGE_ID,
        CONVERSATION,
        BATCH_COUNT,
        ERROR,
        NAMESPACE,
        AGENT,
        SENDER,
        TARGET,
        MESSAGE_TYPE,
        ATTEMPT,
        AUDIT,
        OP,
        DECISION,
        RULE,
        REVISION,
        WAY,
        STATE,
    }
)
"""Everything that a span or a metric may carry; nothing else is exported."""

NATS = "nats"
"""The value of ``messaging.system``."""
INBOX_TEMPLATE = "mas.inbox.{agent}"
REPLY_TEMPLATE = "mas.reply.{agent}"


class OperationType(StrEnum):
    """The values of ``messaging.operation.type`` that are in use."""

    SEND = "send"
    RECEIVE = "receive"
    PROCESS = "process"


# -- spans -----------------------------------------------------------------------------------------
POLICY_SPAN = "mas.policy"  # and the operation
DECIDE_SPAN = "mas.decide"
AUDIT_SPAN = "mas.audit"
COMMIT_SPAN = "mas.commit"
BATCH_SPAN = "mas.commit.batch"
DELIVER_SPAN = "deliver"  # and the destination's template
PROCESS_SPAN = "process"  # likewise


# -- metrics ---------------------------------------------------------------------------------------
class Instrument(StrEnum):
    """What kind of a metric it is."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, unit (UCUM) and attributes, and who has it."""

    name: str
    kind: Instrument
    unit: str
    what: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()  # upper bounds, for a histogram


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that the convention gives for durations."""
_MESSAGING = (SYSTEM, OPERATION, OPERATION_TYPE, TEMPLATE, ERROR)

OPERATION_DURATION = Metric(
    "messaging.client.operation.duration",
    Instrument.HISTOGRAM,
    "s",
    "Duration of a send, a request with its reply, or a reply",
    _MESSAGING,
    SECONDS,
)
SENT = Metric(
    "messaging.client.sent.messages",
    Instrument.COUNTER,
    "{message}",
    "Messages that an agent tried to send",
    _MESSAGING,
)
CONSUMED = Metric(
    "messaging.client.consumed.messages",
    Instrument.COUNTER,
    "{message}",
    "Messages that were given to a handler, and replies to who asked",
    _MESSAGING,
)
PROCESS_DURATION = Metric(
    "messaging.process.duration",
    Instrument.HISTOGRAM,
    "s",
    "Duration of a handler",
    _MESSAGING,
    SECONDS,
)
AGENT_METRICS = (OPERATION_DURATION, SENT, CONSUMED, PROCESS_DURATION)

DECISIONS = Metric(
    "mas.policy.decisions",
    Instrument.COUNTER,
    "{decision}",
    "Decisions in the audit, by kind",
    (NAMESPACE, OP, DECISION),
)
POLICY_DURATION = Metric(
    "mas.policy.duration",
    Instrument.HISTOGRAM,
    "s",
    "From the arrival of a call to its verdict, which includes the audit and the commit",
    (NAMESPACE, OP),
    SECONDS,
)
BATCH_SIZE = Metric(
    "mas.commit.batch.size",
    Instrument.HISTOGRAM,
    "{decision}",
    "Decisions that one record, or one atomic batch, made durable together",
    (NAMESPACE, WAY),
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
AUDIT_LAG = Metric(
    "mas.audit.lag",
    Instrument.GAUGE,
    "s",
    "Age of the oldest record in the log that is not in the chain yet",
    (NAMESPACE,),
)
AUDIT_WAITING = Metric(
    "mas.audit.waiting",
    Instrument.GAUGE,
    "{record}",
    "Records in the log that are not in the chain yet",
    (NAMESPACE,),
)
REDELIVERIES = Metric(
    "mas.deliveries.failed",
    Instrument.COUNTER,
    "{delivery}",
    "Failed deliveries that are repeated",
    (NAMESPACE,),
)
DEAD_LETTERS = Metric(
    "mas.dead_letters", Instrument.COUNTER, "{message}", "Messages that became dead letters", (NAMESPACE,)
)
EXPIRED = Metric(
    "mas.requests.expired",
    Instrument.COUNTER,
    "{message}",
    "Requests that ran out of time before they were handled",
    (NAMESPACE,),
)
CIRCUITS = Metric(
    "mas.circuits",
    Instrument.GAUGE,
    "{circuit}",
    "Circuits that are not closed, by state",
    (NAMESPACE, STATE),
)
RATE_LIMITED = Metric(
    "mas.rate_limit.refusals",
    Instrument.COUNTER,
    "{decision}",
    "Refusals by a rate limit, by which",
    (NAMESPACE, RULE),
)
READY = Metric(
    "mas.worker.ready",
    Instrument.GAUGE,
    "{worker}",
    "1 while policy is confirmed and the log answers, else 0",
    (),
)
WORKER_METRICS = (
    DECISIONS,
    POLICY_DURATION,
    BATCH_SIZE,
    AUDIT_LAG,
    AUDIT_WAITING,
    REDELIVERIES,
    DEAD_LETTERS,
    EXPIRED,
    CIRCUITS,
    RATE_LIMITED,
    READY,
)
