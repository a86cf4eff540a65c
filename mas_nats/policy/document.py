"""What policy says about one namespace, as stored under ``ns.<namespace>`` in the ``policy`` bucket.

Only the tenant controller writes it. It is the single source for the callout (who may connect, into
which account), for authorization, and for discovery.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from mas_nats.policy.applications import TokenPolicy
from mas_nats.policy.governance import Governance
from mas_nats.policy.roles import target_of
from mas_nats.wire.identity import ANY_AGENT, ID_PATTERN, agent_of, namespace_of, require_id, require_name
from mas_nats.wire.state_mode import StateMode

AgentId = Annotated[
    str,
    AfterValidator(lambda value: require_id(value, "agent id")),
    Field(json_schema_extra={"pattern": f"^{ID_PATTERN.pattern}$"}),
]
Sender = Annotated[str, AfterValidator(lambda value: require_name(value, "sender", any_agent=True))]
Target = Annotated[
    str,
    AfterValidator(
        lambda value: value if value == ANY_AGENT else require_name(value, "target", any_agent=True)
    ),
]


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AgentPolicy(Strict):
    """What is declared about one agent."""

    account: str  # public key of its NATS account
    capabilities: tuple[str, ...] = ()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    state: StateMode = StateMode.MEDIATED


class Permissions(Strict):
    """Whom a sender may reach. A block beats every allow.

    ``*`` allows every agent of the own namespace, and blocks every agent there is. An agent of another
    namespace is ``namespace/agent``, all of them are ``namespace/*``.
    """

    allowed_targets: tuple[Target, ...] = ()
    blocked_targets: tuple[Target, ...] = ()


_MOST = 1 << 53
"""No number is larger: JSON keeps them exact up to here."""
_LARGEST_STATE = (1 << 31) - 1 - 4096
"""Bytes: the server counts the size of a message in 31 bits, and a state has headers, too."""
_LONGEST = 1e9
"""Seconds: some thirty years. The server counts nanoseconds in 64 bits."""


class Limits(Strict):
    """Limits that hold for every agent of the namespace."""

    max_payload: int = Field(1_000_000, gt=0, le=_MOST, description="Bytes of a message's body")
    max_state: int = Field(
        1_000_000, gt=0, le=_LARGEST_STATE, description="Bytes of an agent's state as JSON"
    )
    inbox_messages: int = Field(100_000, gt=0, le=_MOST, description="Waiting messages for each agent")
    log_bytes: int = Field(
        4 << 30,
        gt=0,
        le=_MOST,
        description="Bytes of the INBOX stream; an inbox that holds more than is free takes no more",
    )
    max_delay: float = Field(
        30 * 86400.0, gt=0, le=_LONGEST, description="Seconds until a delayed message is due"
    )
    delayed_messages: int = Field(
        10_000, gt=0, le=_MOST, description="Delayed messages of each sender that wait"
    )
    release_rate: int = Field(500, gt=0, le=_MOST, description="Delayed messages released in a second")
    max_deliver: int = Field(5, gt=0, le=_MOST, description="Attempts before a message is dead")
    ack_wait: float = Field(
        30.0, gt=0, le=_LONGEST, description="Seconds without a sign before it is delivered again"
    )
    in_flight: int = Field(128, gt=0, le=_MOST, description="Messages handled at once by one instance")
    max_ack_pending: int = Field(4096, gt=0, le=_MOST, description="The same by all instances together")
    retry_delay: float = Field(
        1.0, ge=0, le=_LONGEST, description="Seconds before the second attempt; doubles with each"
    )
    retry_delay_max: float = Field(60.0, ge=0, le=_LONGEST, description="Seconds; no attempt waits longer")


class Revocation(Strict):
    """A certificate that nobody may use any more."""

    identity: str  # SPIFFE id, "" when not known
    at: int  # unix seconds
    until: int = 0  # unix seconds: when it expires by itself; 0: not known


class Document(Strict):
    """The policy of one namespace."""

    version: Literal[1] = 1
    namespace: Annotated[str, AfterValidator(lambda value: require_id(value, "namespace"))]
    account: str  # public key of the tenant account
    agents: dict[AgentId, AgentPolicy] = Field(default_factory=dict)
    inspectors: dict[AgentId, str] = Field(default_factory=dict)  # name -> account public key
    operators: tuple[AgentId, ...] = ()  # people and CI jobs, inside the tenant account
    permissions: dict[Sender, Permissions] = Field(default_factory=dict)
    limits: Limits = Limits()
    governance: Governance = Governance()
    tokens: TokenPolicy = TokenPolicy()
    revoked: dict[str, Revocation] = Field(default_factory=dict)  # by SHA-256, lower-case hexadecimal

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        """A rule is about this namespace: one of its two sides is here, under its plain name."""
        for sender, rule in self.permissions.items():
            for target in (*rule.allowed_targets, *rule.blocked_targets):
                require_one_side(self.namespace, sender, target)
        for role in self.governance.roles.values():
            for name in (*role.agents, *map(target_of, role.permissions)):
                require_one_side(self.namespace, name, "")
        return self

    def stored(self) -> bytes:
        """As it lies in the bucket: what differs from the defaults.

        A worker that does not know a field closes the namespace (fail closed). So only a feature in use asks
        for workers that know it, and a default never changes: it would mean something else to each version.
        """
        said = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"version": self.version, **said}, separators=(",", ":")).encode()


def require_one_side(namespace: str, sender: str, target: str) -> None:
    """Refuse a rule that is not about ``namespace``, or names it where it is understood.

    Raises:
        ValueError: the text says what to write.

    """
    for name in (sender, target):
        if namespace_of(name) == namespace:
            raise ValueError(f"{name} is an agent of this namespace: write {agent_of(name)}")
    if namespace_of(sender) and namespace_of(target):
        raise ValueError(
            f"{sender} to {target} is not about namespace {namespace}: one of the two must be an agent of it"
        )


def key(namespace: str) -> str:
    """The document's key in the bucket."""
    return f"ns.{namespace}"
