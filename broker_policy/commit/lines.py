"""A decision as a line of the record; what a malformed call claims is cut short and made printable."""

from __future__ import annotations

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.printable import printable
from mas_nats.policy.call import Call
from mas_nats.wire.verdict import Decision

_LONGEST = 128
"""Characters of an id, a target or a type; an accepted one is not longer."""


def line_of(
    call: Call, decision: Decision, rule: str, way: Way, commitment: str, fingerprint: str
) -> DecisionLine:
    """The line about ``call``."""
    return DecisionLine(
        op=call.op,
        message_id=printable(call.message_id, _LONGEST),
        sender=call.sender,
        target=printable(call.target, _LONGEST),
        type=printable(call.type, _LONGEST),
        size=len(call.body),
        decision=decision,
        rule=rule,
        way=way,
        time=call.received,
        commitment=commitment,
        fingerprint=fingerprint,
        by=call.errand.by if call.errand else "",
        letter=call.errand.reference if call.errand else "",
    )


def weight(line: DecisionLine) -> int:
    """Bytes that ``line`` takes in a record, at most: quotes and backslashes are written as two."""
    return 450 + 2 * (len(line.message_id) + len(line.target) + len(line.type) + len(line.by))
