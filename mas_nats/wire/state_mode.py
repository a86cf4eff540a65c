"""How an agent reaches its durable state."""

from __future__ import annotations

from enum import StrEnum


class StateMode(StrEnum):
    """``state:`` of an agent in the manifest."""

    MEDIATED = "mediated"  # through the policy service: judged and audited before it is written
    DIRECT = "direct"  # the agent's own key in the bucket: as fast as a KV, audited after the fact
