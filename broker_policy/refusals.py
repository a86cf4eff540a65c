"""The refusals that no pipeline step makes: who calls, what state the service and the log are in."""

from __future__ import annotations

from broker_policy.pipeline.call import Refusal
from mas_nats.wire.verdict import Decision


def invalid(rule: str, reason: str) -> Refusal:
    """A call whose body is not what the call needs."""
    return Refusal(Decision.INVALID, "shape", rule, reason, "Call it as the SDK does")


def unknown_sender(sender: str) -> Refusal:
    """A sender that policy does not know, though its account still exists."""
    return Refusal(
        Decision.AUTHZ_DENIED,
        "identity",
        "unknown_sender",
        f"{sender} is not in the policy (any more)",
        "Declare it in the manifest and apply it",
    )


def policy_stale() -> Refusal:
    """This worker does not know whether its policy is current, so it allows nothing."""
    return Refusal(
        Decision.POLICY_STALE,
        "policy",
        "confirmation",
        "this worker cannot confirm that its policy is current",
        "Retry; if it lasts, check the workers' connection to the CONTROL account",
        retry=True,
    )


def unavailable() -> Refusal:
    """A store that did not answer in time."""
    return Refusal(
        Decision.UNAVAILABLE,
        "service",
        "store",
        "the store did not answer in time",
        "Retry later",
        retry=True,
    )


def busy() -> Refusal:
    """Too many calls wait in this worker."""
    return Refusal(
        Decision.UNAVAILABLE, "service", "busy", "this worker has too much to do", "Retry later", retry=True
    )


def log_full() -> Refusal:
    """The inbox stream, which is the log, takes no more."""
    return Refusal(
        Decision.LOG_FULL,
        "commit",
        "log_bytes",
        "the log is full, nothing can be accepted",
        "Retry later; check that agents handle their messages and that the audit is projected",
        retry=True,
    )


def inbox_full(target: str) -> Refusal:
    """One agent's inbox takes no more."""
    return Refusal(
        Decision.INBOX_FULL,
        "commit",
        "inbox_messages",
        f"the inbox of {target} is full",
        "Retry later; start more instances of the target, or raise limits.inbox_messages",
        retry=True,
    )


def id_reused() -> Refusal:
    """A message id that stands for other content already."""
    return Refusal(
        Decision.ID_REUSED,
        "commit",
        "message_id",
        "this message id was used before, for other content",
        "Use a new id for a new message; repeat an id only with the same content",
    )


def cannot_compare() -> Refusal:
    """A known message id whose content neither the stream nor the audit can tell at the moment."""
    return Refusal(
        Decision.UNAVAILABLE,
        "commit",
        "message_id",
        "this message id was used before, and its content cannot be compared right now",
        "Repeat it later with the same id",
        retry=True,
    )


def given_up() -> Refusal:
    """A message id whose message was never stored: its worker died, and the audit has closed the case."""
    return Refusal(
        Decision.ID_REUSED,
        "commit",
        "given_up",
        "an earlier message of this id was decided and never stored; the id is spent",
        "Send it again under a new id: nothing was delivered",
    )
