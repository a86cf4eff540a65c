"""What a manifest, of whatever form, wants of one namespace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mas_nats.policy.applications import TokenPolicy
from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.governance import Governance
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from mas_nats.wire.state_mode import StateMode


@dataclass(frozen=True, slots=True)
class WantedAgent:
    """One declared agent."""

    capabilities: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    state: StateMode = StateMode.MEDIATED

    def policy(self, account: str = "") -> AgentPolicy:
        """The policy of this agent, whose NATS account has the public key ``account``."""
        return AgentPolicy(
            account=account, capabilities=self.capabilities, metadata=self.metadata, state=self.state
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """One declared namespace. ``notices`` are for whoever wrote it, as of what has no effect."""

    namespace: str = DEFAULT_NAMESPACE
    agents: dict[str, WantedAgent] = field(default_factory=dict)
    permissions: dict[str, Permissions] = field(default_factory=dict)
    inspectors: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    governance: Governance = field(default_factory=Governance)
    tokens: TokenPolicy = field(default_factory=TokenPolicy)
    notices: tuple[str, ...] = ()

    def document(self) -> Document:
        """The policy that this becomes where there are no accounts: in memory, and in dry runs."""
        return Document(
            namespace=self.namespace,
            account="",
            agents={name: each.policy() for name, each in self.agents.items()},
            operators=self.operators,
            permissions=self.permissions,
            limits=self.limits,
            governance=self.governance,
            tokens=self.tokens,
        )
