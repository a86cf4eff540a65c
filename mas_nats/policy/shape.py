"""Step 1: is this a well-formed message at all? Judges form and size, never meaning."""

from __future__ import annotations

import re

import orjson

from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.document import Limits
from mas_nats.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.identity import split_target
from mas_nats.wire.subjects import ANSWERING, CROSSING, Op
from mas_nats.wire.verdict import Decision

MAX_DEADLINE_MS = 3_600_000
"""A request may wait an hour at most: as long as a retired sealing key stays accepted (DESIGN 3, 5)."""
CLOCK_TOLERANCE_MS = 5_000
"""How far the clocks of agents and workers may disagree about a deadline (DESIGN 5)."""

_REQUEST = Op.REQUEST  # looked up once: Python 3.11 takes ten times as long for a member as for a variable
_TOKEN = re.compile(r"[!-~]{1,128}")
_INSTANCE = re.compile(r"[a-f0-9]{20}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def shape(call: Call, table: Table) -> Refusal | None:
    """Refuse what is malformed or too large."""
    return (
        well_formed(call)
        or (_target(call, table) if call.op not in ANSWERING else None)
        or (_request(call) if call.op == _REQUEST else None)
        or sized(call, table)
    )


def well_formed(call: Call) -> Refusal | None:
    """Refuse ids and headers that are no such."""
    if call.malformed:
        return _invalid("header", call.malformed, "Send it as the SDK does")
    if not _TOKEN.fullmatch(call.message_id):
        return _invalid(
            "message_id", "the message id is missing or malformed", "Use 1-128 printable ASCII characters"
        )
    if not _TOKEN.fullmatch(call.type):
        return _invalid(
            "type", "the message type is missing or malformed", "Use 1-128 printable ASCII characters"
        )
    if call.traceparent and not _TRACEPARENT.fullmatch(call.traceparent):
        call.traceparent = call.tracestate = ""  # W3C Trace Context: ignore what does not parse
    elif call.tracestate and not (call.tracestate.isascii() and call.tracestate.isprintable()):
        call.tracestate = ""
    return None


def unfit_time(call: Call, limits: Limits) -> Refusal | None:
    """Refuse a delayed message that does not say when it is due, or is due too late."""
    if not call.due:
        return _invalid("due", "the message does not say when it is due", "Give delay= or at=")
    if call.due > call.received + 1000 * limits.max_delay:
        return _invalid(
            "max_delay",
            f"the message is due in more than {limits.max_delay:g} s, the limit",
            "Ask for less, or raise limits.max_delay",
        )
    return None


def _target(call: Call, table: Table) -> Refusal | None:
    try:
        namespace, agent = split_target(call.target)
    except ValueError as error:
        return _invalid("target", str(error), "Name an agent id of the manifest")
    if namespace is None or namespace == table.namespace:
        call.target = agent
        return None
    if call.crosses and call.op in CROSSING:
        return None
    return Refusal(
        Decision.AUTHZ_DENIED,
        "shape",
        "cross_namespace",
        f"{call.target} is in another namespace, and a {call.op} call stays in its own",
        "Only send(), request() and stream() go to other namespaces",
    )


def _request(call: Call) -> Refusal | None:
    if not _INSTANCE.fullmatch(call.instance):
        return _invalid("instance", "the requester names no instance", "Say hello first, as the SDK does")
    if not call.deadline:
        return _invalid("deadline", "the request has no deadline", f"Set {headers.DEADLINE}")
    if call.deadline < call.received - CLOCK_TOLERANCE_MS:
        return Refusal(
            Decision.EXPIRED, "shape", "deadline", "the request's deadline has passed", "Give it more time"
        )
    if call.deadline > call.received + MAX_DEADLINE_MS + CLOCK_TOLERANCE_MS:
        return _invalid("deadline", "the deadline is more than an hour away", "Ask for one hour at most")
    return None


def sized(call: Call, table: Table) -> Refusal | None:
    """Refuse a body that is too large, or no JSON object."""
    limit = table.limits.max_payload
    if len(call.body) > limit:
        return Refusal(
            Decision.TOO_LARGE,
            "shape",
            "max_payload",
            f"the payload has {len(call.body)} bytes, the limit is {limit}",
            "Send a reference to the data instead, or raise limits.max_payload",
        )
    try:
        value = orjson.loads(call.body)
    except orjson.JSONDecodeError:
        return _invalid("json", "the payload is not valid JSON", "Send a JSON object")
    if not isinstance(value, dict):
        return _invalid(
            "json", f"the payload is a JSON {type(value).__name__}, not an object", "Send an object"
        )
    return None


def _invalid(rule: str, reason: str, fix: str) -> Refusal:
    return Refusal(Decision.INVALID, "shape", rule, reason, fix)
