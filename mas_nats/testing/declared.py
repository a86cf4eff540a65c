"""Agents and permissions declared in code, as a manifest would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.names import names
from mas_nats.policy.document import Limits, Permissions

Agents = Mapping[str, Iterable[str] | WantedAgent] | Iterable[str]
"""Agents with the capabilities each declares, or with all that a manifest says of it; or just their names."""
Reach = Mapping[str, Iterable[str]]
"""Targets by sender; ``"*"`` is every agent."""


def wanted(
    agents: Agents, allow: Reach | None, block: Reach | None, limits: Limits | None, namespace: str
) -> Wanted:
    """What a manifest with this content wants."""
    allowed, blocked = allow or {}, block or {}
    declared = agents if isinstance(agents, Mapping) else dict.fromkeys(names("agents", agents), ())
    return Wanted(
        namespace=namespace,
        agents={agent: wanted_agent(each) for agent, each in declared.items()},
        permissions={
            sender: Permissions(
                allowed_targets=names(f"the targets of {sender}", allowed.get(sender, ())),
                blocked_targets=names(f"the blocked targets of {sender}", blocked.get(sender, ())),
            )
            for sender in sorted({*allowed, *blocked})
        },
        limits=limits or Limits(),
    )


def wanted_agent(declared: Iterable[str] | WantedAgent) -> WantedAgent:
    """One agent, from its capabilities or all that is declared about it."""
    return declared if isinstance(declared, WantedAgent) else WantedAgent(names("capabilities", declared))
