"""The bodies of hello, bye and discover, and what an instance is told."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, JsonValue

from mas_nats.policy.applications import ApplicationType
from mas_nats.policy.instances import HEARTBEAT
from mas_nats.policy.table import Table
from mas_nats.wire.state_mode import StateMode

MAX_HELLO_BYTES = 8_192
"""Capabilities and metadata of an instance, as JSON."""


class Hello(BaseModel):
    """The body of a hello, as any agent may have made it up."""

    capabilities: list[str] = Field(default_factory=list)
    metadata: dict[str, JsonValue] | None = None
    instance: str | None = None
    receives: bool = True
    reconnected: bool = False


class Bye(BaseModel):
    """The body of a bye."""

    instance: str


class Discover(BaseModel):
    """The body of a discover."""

    capabilities: list[str] = Field(default_factory=list)


def terms(table: Table, agent: str, instance: str, room: int) -> dict[str, Any]:
    """What ``instance`` of ``agent`` is told when it says hello.

    ``room``: bytes of a body that the server carries.
    """
    limits, policy = table.limits, table.agent(agent)
    return {
        "instance": instance,
        "namespace": table.namespace,
        "heartbeat": HEARTBEAT,
        "in_flight": limits.in_flight,
        "ack_wait": limits.ack_wait,
        "max_deliver": limits.max_deliver,
        "max_payload": min(limits.max_payload, room),
        "max_state": min(limits.max_state, room),
        "state": policy.state if policy else StateMode.MEDIATED,
        "retry_delay": limits.retry_delay,
        "retry_delay_max": limits.retry_delay_max,
        **_tools(table, agent),
    }


def _tools(table: Table, agent: str) -> dict[str, Any]:
    """The tools of an MCP server that are registered; nothing of other agents."""
    tokens = table.document.tokens
    if tokens.type_of(agent) is not ApplicationType.MCP_SERVER:
        return {}
    return {"tools": dict(tokens.tools_of(agent))}
