"""A decision as a line of the record; what a malformed call claims is cut short and made printable."""

from __future__ import annotations

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.clock import wall_clock
from broker_policy.printable import printable
from mas_nats.policy.call import Call
from mas_nats.wire.verdict import Decision

_LONGEST = 128
"""Characters of an id, a target or a type; an accepted one is not longer."""


def line_of(
    call: Call,
    decision: Decision,
    rule: str,
    way: Way,
    commitment: str,
    fingerprint: str,
    time: int | None = None,
) -> DecisionLine:
    """The line about ``call``, decided at ``time`` (unix milliseconds; None: now by this machine's clock)."""
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
        time=wall_clock() if time is None else time,
        commitment=commitment,
        fingerprint=fingerprint,
        by=call.errand.by if call.errand else "",
        letter=call.errand.reference if call.errand else "",
    )


def weight(line: DecisionLine) -> int:
    """Bytes that ``line`` takes in a record, at most: quotes and backslashes are written as two."""
    claimed = len(line.message_id) + len(line.target) + len(line.type) + len(line.by)
    return 450 + 2 * claimed + len(line.rule)
