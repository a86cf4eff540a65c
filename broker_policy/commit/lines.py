"""A decision as a line of the record; what a malformed call claims is cut short and made printable."""

from __future__ import annotations

import time

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.pipeline.call import Call
from mas_nats.wire.verdict import Decision


def line_of(
    call: Call, decision: Decision, rule: str, way: Way, commitment: str, fingerprint: str
) -> DecisionLine:
    """The line about ``call``."""
    return DecisionLine(
        op=call.op,
        message_id=_printable(call.message_id),
        sender=call.sender,
        target=_printable(call.target),
        type=_printable(call.type),
        size=len(call.body),
        decision=decision,
        rule=rule,
        way=way,
        time=time.time_ns() // 1_000_000,
        commitment=commitment,
        fingerprint=fingerprint,
    )


def _printable(text: str) -> str:
    return text if len(text) <= 128 and text.isascii() else text[:128].encode("ascii", "replace").decode()
