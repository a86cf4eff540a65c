"""The governance of one namespace, as a part of its policy: what may be said, how often, in which role.

Off or empty is the default of what a system asks for (rates, roles); on is the default of what protects it
(data-loss prevention, circuit breaking). A default never changes: see ``Document.stored``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mas_nats.policy.roles import require_pattern
from mas_nats.wire.identity import require_name

_Pattern = Annotated[str, AfterValidator(require_pattern)]
_Holder = Annotated[str, AfterValidator(lambda value: require_name(value, "agent id", any_agent=True))]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RateLimits(_Strict):
    """How many messages and requests a sender may send; 0 is no limit. Exact over all workers."""

    per_minute: int = Field(0, ge=0)
    per_hour: int = Field(0, ge=0)
    pair_per_minute: int = Field(0, ge=0)  # to each target
    pair_per_hour: int = Field(0, ge=0)
    burst: int = Field(0, ge=0)  # at once; 0: as many as the limit itself

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return bool(self.per_minute or self.per_hour or self.pair_per_minute or self.pair_per_hour)


class CircuitBreaker(_Strict):
    """When messages to a failing target are refused, and when it is tried again."""

    enabled: bool = True
    failure_threshold: int = Field(5, gt=0, le=1_000)  # messages that failed within the window
    success_threshold: int = Field(2, gt=0, le=100)  # handled probes after which it is closed again
    timeout_seconds: float = Field(60.0, gt=0, le=86_400)  # open for so long, then probes are let through
    window_seconds: float = Field(300.0, gt=0, le=86_400)


class DlpAction(StrEnum):
    """What becomes of a message in which a rule finds something."""

    BLOCK = "block"
    REDACT = "redact"
    ALERT = "alert"  # delivered as it is, and audited as ALERT


class DlpRule(_Strict):
    """A rule of a user's own. ``pattern`` is RE2 syntax; ``type`` names what it finds."""

    id: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    type: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    pattern: str = Field(min_length=1, max_length=1_000)
    action: DlpAction = DlpAction.REDACT
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    description: str = Field("", max_length=500)
    enabled: bool = True
    case_insensitive: bool = False


class Dlp(_Strict):
    """Data-loss prevention: the built-in classes, changed as it says, and rules of a user's own."""

    enabled: bool = True
    merge_strategy: Literal["append", "replace"] = "append"  # replace: own rules only
    disable_defaults: tuple[str, ...] = ()  # types of built-in rules
    policy_overrides: dict[str, DlpAction] = Field(default_factory=dict)  # by type
    rules: tuple[DlpRule, ...] = Field((), max_length=1_000)


class AuditSink(_Strict):
    """A copy of the audit as JSON lines, written on each machine that runs workers; no path: none.

    The audit itself is in Redis in any case. ``{namespace}`` in the path stands for the namespace; a relative
    path begins in the folder of ``mas up``.
    """

    file_path: str = Field("", max_length=1_000)
    max_bytes: int = Field(10_000_000, ge=1)  # after which the file is rotated
    backup_count: int = Field(5, ge=0)  # rotated files that are kept; 0: never rotated


class Role(_Strict):
    """What the agents of a role may do: patterns such as ``send:billing`` or ``send:worker-*``.

    Its agents may be those of another namespace (``namespace/agent``): then it says whom they reach here.
    """

    permissions: tuple[_Pattern, ...] = ()
    agents: tuple[_Holder, ...] = ()


class Governance(_Strict):
    """Everything of it."""

    rate_limit: RateLimits = RateLimits()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    dlp: Dlp = Dlp()
    roles: dict[str, Role] = Field(default_factory=dict)
    audit: AuditSink = AuditSink()
