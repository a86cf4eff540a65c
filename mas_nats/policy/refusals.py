"""The refusals that no pipeline step makes: who calls, what state the service and the log are in."""

from __future__ import annotations

from collections.abc import Sequence

from mas_nats.policy.call import Refusal
from mas_nats.wire.verdict import Decision

GIVEN_UP = "given_up"
"""The rule by which the id of a message is spent that was never stored."""


def rate_limited(
    rule: str, sender: str, whom: str, count: int, span: str, wait: float, shared_by: int
) -> Refusal:
    """A message too many. ``shared_by``: among how many workers the limit is shared out; 0: it is not."""
    reason = f"{sender} may send {count} messages a {span}{' ' + whom if whom else ''}"
    if shared_by:
        reason += f"; Redis does not count, so this worker enforces its share, 1/{shared_by} of it"
    return Refusal(
        Decision.RATE_LIMITED,
        "rate_limit",
        rule,
        reason,
        f"Retry in {wait:.3g} s, send less often, or raise rate_limit.{rule}",
        retry=True,
        retry_after=wait,
    )


def circuit_open(target: str, wait: float) -> Refusal:
    """A target that failed too often to be troubled now."""
    return Refusal(
        Decision.CIRCUIT_OPEN,
        "circuit_breaker",
        "circuit_open",
        f"handlers of {target} failed too often lately, so it is left alone for now",
        f"Retry in {wait:.3g} s; look into the log of {target}, and its dead letters",
        retry=True,
        retry_after=wait,
    )


def invalid(rule: str, reason: str, fix: str = "Call it as the SDK does") -> Refusal:
    """A call whose body is not what the call needs."""
    return Refusal(Decision.INVALID, "shape", rule, reason, fix)


def not_together(rule: str, reason: str) -> Refusal:
    """Messages that cannot be acknowledged together."""
    return Refusal(Decision.INVALID, "ack", rule, reason, "Acknowledge each message by itself")


def unknown_sender(sender: str) -> Refusal:
    """A sender that policy does not know, though its account still exists."""
    return Refusal(
        Decision.AUTHZ_DENIED,
        "identity",
        "unknown_sender",
        f"{sender} is not in the policy (any more)",
        "Declare it in the manifest and apply it",
    )


def unknown_target(target: str, namespace: str) -> Refusal:
    """A target that a rule allows, or that an operator names, and that policy does not know."""
    return Refusal(
        Decision.UNKNOWN_TARGET,
        "authorize",
        "unknown_target",
        f"there is no agent {target!r} in namespace {namespace!r}",
        "Declare it in the manifest and apply it",
    )


def not_accepted(sender: str, target: str) -> Refusal:
    """An agent of another namespace that does not exist, or takes nothing from this sender.

    Which of the two is that namespace's affair; so are the namespaces there are.
    """
    return Refusal(
        Decision.AUTHZ_DENIED,
        "authorize",
        "not_accepted",
        f"no agent {target} accepts messages of {sender}",
        f"Ask whoever runs that namespace: its policy has to say allow, sender: {sender}, targets: "
        f"[{target.rpartition('/')[2]}]",
    )


def too_many_refused(namespace: str, limit: int) -> Refusal:
    """More messages to a namespace than may be refused there in a second."""
    return Refusal(
        Decision.RATE_LIMITED,
        "authorize",
        "not_accepted_rate",
        f"more than {limit} messages a second to {namespace} were not accepted there",
        "Stop sending what is not accepted",
        retry=True,
        retry_after=1.0,
    )


def withdrawn(sender: str, target: str) -> Refusal:
    """A message from another namespace whose policy does not let its agent send it any more."""
    return Refusal(
        Decision.AUTHZ_DENIED,
        "authorize",
        "sender_side",
        f"the namespace of {sender} does not let it send to {target} (any more)",
        "Ask whoever runs that namespace",
    )


def dlp_blocked(rule: str, types: Sequence[str]) -> Refusal:
    """A body that holds what policy lets nobody send. Says what kind of thing, never what."""
    return Refusal(
        Decision.DLP_BLOCKED,
        "dlp",
        rule,
        f"it holds what data-loss prevention blocks: {', '.join(types)}",
        "Leave it out and send again; mas policy dlp-test FILE says where in a file it stands",
    )


def dlp_costly() -> Refusal:
    """A body that would take too long to search: it is not let pass unsearched."""
    return Refusal(
        Decision.DLP_BLOCKED,
        "dlp",
        "dlp:cost",
        "it takes too long to search for what data-loss prevention must find: too many things look like it",
        "Send it in smaller parts, or as a reference to where it lies",
    )


def dlp_endless(rule: str, most: int) -> Refusal:
    """A streamed reply that waits for its end, since a find of a rule may go on for ever, and is too long."""
    return Refusal(
        Decision.DLP_BLOCKED,
        "dlp",
        "dlp:stream",
        f"what the rule {rule} finds may be of any length, so a streamed reply waits for its end, "
        f"with {most} bytes at most",
        "Bound the repetitions in the middle of its pattern, as in \\s{0,8}, or answer with one reply",
    )


def dlp_header() -> Refusal:
    """A message id, type or trace state that holds what policy lets nobody send: those cannot be redacted."""
    return Refusal(
        Decision.DLP_BLOCKED,
        "dlp",
        "dlp:header",
        "its id, its type or its trace state holds what data-loss prevention blocks or redacts",
        "Put nothing but names into them",
    )


def dlp_unusable() -> Refusal:
    """A policy whose rules of data-loss prevention do not compile: nothing can be let pass."""
    return Refusal(
        Decision.UNAVAILABLE,
        "dlp",
        "settings",
        "the rules of data-loss prevention in the policy cannot be compiled",
        "Correct governance.dlp and apply it",
    )


def not_a_stream() -> Refusal:
    """Frames in answer to a request whose sender takes one reply."""
    return Refusal(
        Decision.INVALID,
        "reply",
        "no_stream",
        "the requester waits for one reply, not for frames",
        "Answer it with one reply, as the SDK's reply_stream() does by itself",
    )


def stream_differs() -> Refusal:
    """A frame that was sent before with other content: two answers must not be spliced into one."""
    return Refusal(
        Decision.ID_REUSED,
        "reply",
        "frame",
        "this part of the answer was streamed before, with other content; the stream was ended",
        "Nothing to do: the requester was told, and may ask again",
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


def reply_foreign(reason: str) -> Refusal:
    """A reply to a request that its sender was not asked."""
    return Refusal(
        Decision.REPLY_FOREIGN,
        "reply",
        "capability",
        reason,
        "Reply with message.reply() to a request that was delivered to this agent",
    )


def reply_late() -> Refusal:
    """A reply after the request's deadline."""
    return Refusal(
        Decision.REPLY_LATE,
        "reply",
        "deadline",
        "the requester has stopped waiting",
        "Nothing to do; a longer timeout= would have let the reply through",
    )


def state_conflict(agent: str) -> Refusal:
    """A state write that another instance was faster than."""
    return Refusal(
        Decision.STATE_CONFLICT,
        "state",
        "revision",
        f"the state of {agent} was changed by another instance",
        "Call refresh_state() and decide again",
    )


def store_full(op: str) -> Refusal:
    """A store other than the log that takes no more."""
    return Refusal(
        Decision.UNAVAILABLE,
        "service",
        "store",
        f"the store behind {op} is full",
        "Raise limits.log_bytes, which is also the limit of the other stores of the namespace",
    )


def too_large(size: int, limit: int) -> Refusal:
    """A body that the NATS server would not carry together with its headers."""
    return Refusal(
        Decision.TOO_LARGE,
        "shape",
        "server_max_payload",
        f"the payload has {size} bytes, the NATS server leaves room for {limit}",
        "Send a reference to the data instead, or raise max_payload of the NATS server",
    )


def too_many_instances(agent: str) -> Refusal:
    """An agent with more live instances, or more said about them, than an agent may have."""
    return Refusal(
        Decision.UNAVAILABLE,
        "service",
        "instances",
        f"{agent} has too many instances, or they announce too much",
        "Stop some; one that is gone is forgotten after 30 s",
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
        "the log is full, or the disk below it, so nothing can be accepted",
        "Retry later; check the disk, that agents handle their messages and that the audit is projected",
        retry=True,
    )


def not_buried(reason: str) -> Refusal:
    """A message that is dead and finds no room among the dead letters."""
    return Refusal(
        Decision.UNAVAILABLE,
        "fail",
        "dead_letters",
        f"the message stays in the inbox: {reason}",
        "Look through the dead letters and remove what is done with",
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


def inbox_bytes(target: str) -> Refusal:
    """One agent's inbox holds more of the log than is left for all others."""
    return Refusal(
        Decision.INBOX_FULL,
        "commit",
        "log_bytes",
        f"the inbox of {target} holds more than is left in the log for all others",
        "Retry later; start more instances of the target, send references to large data instead of the data, "
        "or raise limits.log_bytes",
        retry=True,
    )


def delayed_full(sender: str, limit: int) -> Refusal:
    """A sender of whom as many delayed messages wait as may."""
    return Refusal(
        Decision.DELAYED_FULL,
        "commit",
        "delayed_messages",
        f"{limit} delayed messages of {sender} wait already",
        "Retry when some were released, cancel some, or raise limits.delayed_messages",
        retry=True,
    )


def delayed_large(sender: str) -> Refusal:
    """A sender whose delayed messages hold more bytes than are left for all other senders."""
    return Refusal(
        Decision.DELAYED_FULL,
        "commit",
        "log_bytes",
        f"the delayed messages of {sender} hold more than is left for all others",
        "Retry when some were released, cancel some, or raise limits.log_bytes, which is their limit too",
        retry=True,
    )


def delayed_bytes() -> Refusal:
    """The stream of delayed messages takes no more."""
    return Refusal(
        Decision.LOG_FULL,
        "commit",
        "log_bytes",
        "there is no room for more delayed messages",
        "Retry later, or raise limits.log_bytes, which is their limit too",
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
        GIVEN_UP,
        "an earlier message of this id was decided and never stored; the id is spent",
        "Send it again under a new id: nothing was delivered",
    )


def audit_silent() -> Refusal:
    """A dead letter of which the audit cannot say whether a message was made of it before."""
    return Refusal(
        Decision.UNAVAILABLE,
        "redrive",
        "redriven_before",
        "the audit does not answer, so whether it was redriven before cannot be known",
        "Retry when Redis answers again",
        retry=True,
    )


def still_declared(agent: str) -> Refusal:
    """An agent whose inbox shall be cleared as if it were removed."""
    return Refusal(
        Decision.INVALID,
        "retire",
        "still_declared",
        f"{agent} is in the policy, so its messages are its own",
        "Remove it from the manifest and apply that first",
    )


def policy_behind(revision: int) -> Refusal:
    """A worker that does not follow the revision yet under which it shall act."""
    return Refusal(
        Decision.POLICY_STALE,
        "policy",
        "revision",
        f"this worker does not follow revision {revision} yet",
        "Retry",
        retry=True,
    )
