"""What an application is told of an error of the SDK."""

from __future__ import annotations

from mas_nats.errors import (
    CircuitOpen,
    DataBlocked,
    IdentityRefused,
    MasError,
    OutcomeUnknown,
    Overloaded,
    PolicyStale,
    RateLimited,
    Refused,
    RequestFailed,
    RequestTimeout,
    Unavailable,
)
from mas_nats.sidecar.refusal import OUTCOME_UNKNOWN, REFUSED, TOO_LARGE, UNAVAILABLE, Refusal
from mas_nats.wire.verdict import Decision

_LATER = (Overloaded, RateLimited, CircuitOpen, PolicyStale)


def told(error: MasError, message_id: str) -> Refusal:
    """The refusal for an error; ``message_id`` finds the message in the audit."""
    if isinstance(error, Refused):
        verdict = error.verdict
        status = 429 if isinstance(error, RateLimited) else 503 if isinstance(error, _LATER) else 403
        code = UNAVAILABLE if isinstance(error, _LATER) else REFUSED
        if verdict.decision is Decision.TOO_LARGE:
            status, code = 413, TOO_LARGE
        text = f"policy refused it ({verdict.decision}, step {verdict.step}): {verdict.reason}"
        return Refusal(
            f"policy.{verdict.rule or verdict.decision.lower()}",
            text,
            verdict.fix,
            status,
            code,
            message_id=message_id,
            retry_after=error.retry_after,
        )
    if isinstance(error, Unavailable | IdentityRefused):
        return Refusal("unavailable", f"it could not leave: {error}", "", 503, UNAVAILABLE, retry_after=1)
    if isinstance(error, RequestFailed) and error.decision is Decision.EXPIRED:
        return Refusal("expired", "it was not taken in time, and was not run", "", 504, UNAVAILABLE)
    if isinstance(error, RequestFailed) and f"({DataBlocked.__name__})" in str(error):
        text = "policy refused the rest of the answer, which holds what data-loss prevention blocks"
        return Refusal("answer_refused", text, "", 502, OUTCOME_UNKNOWN, ran="yes", message_id=message_id)
    status = 504 if isinstance(error, RequestTimeout | OutcomeUnknown) else 502
    return Refusal(
        "outcome_unknown",
        f"{error}: whether the call was run is not known",
        "Look at what it would have changed before calling again",
        status,
        OUTCOME_UNKNOWN,
        ran="unknown",
        message_id=message_id,
    )
