"""Decisions and the answer that carries one back to the agent that asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

ACK_PENDING = "pending"
"""The rule by which messages are not acknowledged together: nearly as many are pending as may be."""


class Decision(StrEnum):
    """What the policy service decided. The first seven names are the ancestor's."""

    ALLOWED = "ALLOWED"
    ALERT = "ALERT"
    DLP_REDACTED = "DLP_REDACTED"
    DLP_BLOCKED = "DLP_BLOCKED"
    RATE_LIMITED = "RATE_LIMITED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    AUTHZ_DENIED = "AUTHZ_DENIED"
    INVALID = "INVALID"
    TOO_LARGE = "TOO_LARGE"
    UNKNOWN_TARGET = "UNKNOWN_TARGET"
    ID_REUSED = "ID_REUSED"
    INBOX_FULL = "INBOX_FULL"
    LOG_FULL = "LOG_FULL"
    DELAYED_FULL = "DELAYED_FULL"
    POLICY_STALE = "POLICY_STALE"
    EXPIRED = "EXPIRED"
    REPLY_FOREIGN = "REPLY_FOREIGN"
    REPLY_LATE = "REPLY_LATE"
    STATE_CONFLICT = "STATE_CONFLICT"
    UNAVAILABLE = "UNAVAILABLE"
    DEAD = "DEAD"


_OPTIONAL = ("message_id", "step", "rule", "reason", "fix", "retry", "retry_after", "duplicate", "result")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policy service's answer to one call.

    ``step`` and ``rule`` name what refused; ``reason`` says it to a person and ``fix`` says what to do.
    ``retry`` is true where repeating the same call later may succeed, ``retry_after`` in how many seconds it
    may, where that is known. ``result`` is what the call
    returns when it is accepted. None of them ever holds a payload.
    """

    decision: Decision
    ok: bool
    message_id: str = ""
    step: str = ""
    rule: str = ""
    reason: str = ""
    fix: str = ""
    retry: bool = False
    retry_after: float = 0.0
    duplicate: bool = False
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it is an acceptance of which there is nothing else to say."""
        return (
            self.ok
            and self.decision is Decision.ALLOWED
            and not (self.duplicate or self.result or self.rule or self.step or self.reason or self.fix)
            and not (self.retry or self.retry_after)
        )

    def encode(self) -> bytes:
        """The verdict as the body of an answer."""
        return orjson.dumps(self.fields())

    def fields(self) -> dict[str, Any]:
        """The verdict as a JSON object; what is empty is left out."""
        out: dict[str, Any] = {"ok": self.ok, "decision": self.decision}
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value:
                out[name] = value
        return out

    @classmethod
    def decode(cls, body: bytes) -> Verdict:
        """Read an answer.

        Raises:
            ValueError: it is not a verdict.

        """
        try:
            return cls.read(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise ValueError("not a verdict: no JSON") from error

    @classmethod
    def read(cls, raw: Any) -> Verdict:
        """Read the JSON object of a verdict.

        Raises:
            ValueError: it is not a verdict.

        """
        try:
            return cls(
                decision=Decision(raw["decision"]),
                ok=bool(raw["ok"]),
                message_id=str(raw.get("message_id", "")),
                step=str(raw.get("step", "")),
                rule=str(raw.get("rule", "")),
                reason=str(raw.get("reason", "")),
                fix=str(raw.get("fix", "")),
                retry=bool(raw.get("retry")),
                retry_after=float(raw.get("retry_after", 0.0)),
                duplicate=bool(raw.get("duplicate")),
                result=dict(raw.get("result") or {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a verdict: {type(error).__name__}") from error


def accepted(message_id: str = "", *, duplicate: bool = False, **result: Any) -> Verdict:
    """An accepting verdict that returns ``result``."""
    return Verdict(Decision.ALLOWED, ok=True, message_id=message_id, duplicate=duplicate, result=result)
