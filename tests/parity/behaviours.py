"""What the ancestor does by its documentation, as tables. Here it is the same, or it says why not.

``Differs`` names a default or a rule that is another one here on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mas_nats.policy.governance import DlpAction, DlpRule
from mas_nats.wire.verdict import Decision

BLOCK, REDACT, ALERT = DlpAction.BLOCK, DlpAction.REDACT, DlpAction.ALERT


@dataclass(frozen=True, slots=True)
class Differs:
    """What it is here, and why it is not what it was."""

    here: Any
    why: str


DEFAULTS: dict[str, Any] = {
    "redis.url": Differs("", "a Redis of its own is started when none is named"),
    "redis.socket_timeout": None,
    "rate_limit.per_minute": 100,
    "rate_limit.per_hour": 1000,
    "features.dlp": True,
    "features.rbac": Differs(
        True, "roles are declared in the manifest, and grant nothing where there are none"
    ),
    "features.circuit_breaker": True,
    "dlp.merge_strategy": "append",
    "dlp.disable_defaults": (),
    "dlp.policy_overrides": {},
    "dlp.rules": (),
    "audit.file_path": None,
    "audit.max_bytes": 10_000_000,
    "audit.backup_count": 5,
    "telemetry.enabled": False,
    "telemetry.service_name": Differs("mas-nats", "the name of another product"),
    "telemetry.service_namespace": "mas",
    "telemetry.environment": "dev",
    "telemetry.otlp_endpoint": None,
    "telemetry.sample_ratio": 1.0,
    "telemetry.export_metrics": True,
    "telemetry.metrics_export_interval_ms": 60_000,
    "telemetry.headers": {},
    "circuit_breaker.failure_threshold": 5,
    "circuit_breaker.success_threshold": 2,
    "circuit_breaker.timeout_seconds": 60.0,
    "circuit_breaker.window_seconds": 300.0,
}

REFUSED = (
    ("rate_limit.per_minute", -1),
    ("rate_limit.per_hour", -1),
    ("dlp.merge_strategy", "merge"),
    ("dlp.policy_overrides", {"ssn": "shred"}),
    ("audit.max_bytes", 0),
    ("audit.backup_count", -1),
    ("telemetry.sample_ratio", 1.1),
    ("telemetry.sample_ratio", -0.1),
    ("telemetry.metrics_export_interval_ms", 999),
    ("circuit_breaker.failure_threshold", 0),
    ("circuit_breaker.success_threshold", 0),
    ("circuit_breaker.timeout_seconds", 0),
    ("circuit_breaker.window_seconds", 0),
    ("rate_limit.per_second", 1),
    ("limits", {}),
)
"""Beyond a bound, or not known."""

ACTIONS = {
    "ssn": REDACT,
    "email": ALERT,
    "phone": ALERT,
    "address": ALERT,
    "mrn": BLOCK,
    "health_insurance": BLOCK,
    "icd10": ALERT,
    "credit_card": BLOCK,
    "cvv": BLOCK,
    "api_key": BLOCK,
    "aws_key": BLOCK,
    "private_key": BLOCK,
    "jwt": BLOCK,
    "password": BLOCK,
}
"""What happens by default to what holds one of a class."""

SSN, EMAIL, CARD, BADGE = "219-09-9999", "ann@example.org", "4111 1111 1111 1111", "BADGE-4711"


def own(action: DlpAction, type_: str = "badge", **more: Any) -> DlpRule:
    return DlpRule(id="own", type=type_, pattern=r"BADGE-\d{4}", action=action, **more)


MERGED: tuple[tuple[str, dict[str, Any], str, Decision], ...] = (
    ("nothing found", {}, "hello", Decision.ALLOWED),
    ("alert delivers", {}, EMAIL, Decision.ALERT),
    ("redact", {}, SSN, Decision.DLP_REDACTED),
    ("block", {}, CARD, Decision.DLP_BLOCKED),
    ("redact beats alert", {}, f"{EMAIL} {SSN}", Decision.DLP_REDACTED),
    ("block beats redact", {}, f"{SSN} {CARD}", Decision.DLP_BLOCKED),
    ("block beats alert", {}, f"{CARD} {EMAIL}", Decision.DLP_BLOCKED),
    ("append: own", {"rules": [own(BLOCK)]}, BADGE, Decision.DLP_BLOCKED),
    ("append: built-in", {"rules": [own(ALERT)]}, SSN, Decision.DLP_REDACTED),
    ("append: strictest of both", {"rules": [own(BLOCK)]}, f"{SSN} {BADGE}", Decision.DLP_BLOCKED),
    ("replace: own", {"merge_strategy": "replace", "rules": [own(REDACT)]}, BADGE, Decision.DLP_REDACTED),
    ("replace: built-in", {"merge_strategy": "replace", "rules": [own(REDACT)]}, CARD, Decision.ALLOWED),
    ("replace by nothing", {"merge_strategy": "replace"}, CARD, Decision.ALLOWED),
    ("a default that is off", {"disable_defaults": ["ssn"]}, SSN, Decision.ALLOWED),
    ("the others stay on", {"disable_defaults": ["ssn"]}, CARD, Decision.DLP_BLOCKED),
    ("override to block", {"policy_overrides": {"ssn": BLOCK}}, SSN, Decision.DLP_BLOCKED),
    ("override to alert", {"policy_overrides": {"credit_card": ALERT}}, CARD, Decision.ALERT),
    (
        "an override beats a rule's own action",
        {"rules": [own(ALERT)], "policy_overrides": {"badge": BLOCK}},
        BADGE,
        Decision.DLP_BLOCKED,
    ),
    ("a rule that is off", {"rules": [own(BLOCK, enabled=False)]}, BADGE, Decision.ALLOWED),
    ("case matters", {"rules": [own(BLOCK)]}, BADGE.lower(), Decision.ALLOWED),
    ("or not", {"rules": [own(BLOCK, case_insensitive=True)]}, BADGE.lower(), Decision.DLP_BLOCKED),
    ("DLP off", {"enabled": False}, CARD, Decision.ALLOWED),
    # Here a rule's action is its own. There it became that of all rules of its type, built-in ones included,
    # so that one careless rule made a class harmless; ``policy_overrides`` says the same, and means it.
    ("own rule of a built-in type", {"rules": [own(ALERT, "ssn")]}, SSN, Decision.DLP_REDACTED),
    ("and what it finds itself", {"rules": [own(BLOCK, "ssn")]}, BADGE, Decision.DLP_BLOCKED),
)
"""How the built-in rules and those of a user come together: name, settings, text, decision."""

REACH: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], bool], ...] = (
    ("deny by default", (), (), (), False),
    ("allowed", ("bob",), (), (), True),
    ("everybody", ("*",), (), (), True),
    ("somebody else", ("carol",), (), (), False),
    ("a block beats an allow", ("bob",), ("bob",), (), False),
    ("a block beats everybody", ("*",), ("bob",), (), False),
    ("a block of another", ("*",), ("carol",), (), True),
    ("everybody is blocked", ("bob",), ("*",), (), False),
    ("a role", (), (), ("send:bob",), True),
    ("a role for all", (), (), ("send:*",), True),
    ("a role for everything", (), (), ("*",), True),
    ("a role with a pattern", (), (), ("send:b*",), True),
    ("a pattern of others", (), (), ("send:c*",), False),
    ("one of several", (), (), ("send:carol", "send:*b"), True),
    ("a block beats a role", (), ("bob",), ("*",), False),
)
"""Whether alice reaches bob: name, allowed, blocked, what her role permits, whether she does."""
