"""Whether an agent may ask its language model: the call that stands for what goes there."""

from __future__ import annotations

import re

from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.shape import sized, well_formed
from mas_nats.policy.table import Table
from mas_nats.wire.verdict import Decision

LLM_RULE = "llm"
"""The rule that allows it."""
PLACE = "llm:"
"""Before the host of a language model, where the audit names a target: no agent has such a name."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?")
_NOT_AGENTS = frozenset({"client", "mcp_server"})


def prompt(call: Call, table: Table, room: int) -> Refusal | None:
    """What shape and permission have against a ``prompt``; its target is the model's host, as it came.

    ``room``: bytes of a body that the server carries.
    """
    if (refusal := well_formed(call)) is not None:
        return refusal
    if not _HOST.fullmatch(call.target.removeprefix(PLACE)):
        return refusals.invalid("llm_host", "the call names no host of a language model")
    call.target = PLACE + call.target.removeprefix(PLACE)
    if len(call.body) > room:
        return refusals.too_large(len(call.body), room)
    if (refusal := sized(call, table)) is not None:
        return refusal
    agent = table.agent(call.sender)
    kind = agent.metadata.get("type") if agent is not None else None
    if kind in _NOT_AGENTS:
        return Refusal(
            Decision.AUTHZ_DENIED,
            "authorize",
            "application_type",
            f"{call.sender} is an application of type {kind}, and only agents ask a language model",
            "Declare it as an agent, or have an agent ask",
        )
    return None
