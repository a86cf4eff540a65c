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
    errand = call.errand
    claimed = message_id, target, kind = call.message_id, call.target, call.type
    whole = message_id + target + kind
    if " " in whole or printable(whole, _LONGEST) != whole:
        message_id, target, kind = (printable(each, _LONGEST) for each in claimed)
    return DecisionLine(  # by place: by name it takes twice as long
        call.op,
        message_id,
        call.sender,
        target,
        kind,
        len(call.body),
        decision,
        rule,
        way,
        wall_clock() if time is None else time,
        commitment,
        fingerprint,
        errand.by if errand else "",
        errand.reference if errand else "",
    )


def weight(line: DecisionLine) -> int:
    """Bytes that ``line`` takes in a record, at most: quotes and backslashes are written as two."""
    claimed = len(line.message_id) + len(line.target) + len(line.type) + len(line.by)
    return 450 + 2 * claimed + len(line.rule)
