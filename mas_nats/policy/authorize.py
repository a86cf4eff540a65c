"""Step 2: may this sender reach this target? Block beats allow and role; nothing is allowed by default."""

from __future__ import annotations

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import ANSWERING
from mas_nats.wire.verdict import Decision


def authorize(call: Call, table: Table) -> Refusal | None:
    """Refuse a target that no rule allows, and an allowed one that does not exist.

    A reply needs no rule: the reply capability, opened before, is the permission to answer this request.
    """
    if call.op in ANSWERING:
        return None
    if not table.allows(call.sender, call.target):
        denial = table.denial(call.sender, call.target)
        return Refusal(Decision.AUTHZ_DENIED, "authorize", denial.rule, denial.reason, denial.fix)
    if table.agent(call.target) is None and not call.crosses:  # who is there, the other side knows
        return refusals.unknown_target(call.target, table.namespace)
    return None
