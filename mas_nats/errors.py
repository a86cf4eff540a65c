"""Every error the SDK raises, in one tree.

    MasError
    |- ConfigurationError      an option, a certificate or an address is missing or wrong
    |- IdentityRefused         the broker refused this certificate (unknown, expired, foreign CA, revoked)
    |- Unavailable             nobody could take the call; nothing happened, repeating is safe
    |- OutcomeUnknown          the call went out and no answer came; repeat with the same id
    |- Refused                 policy said no; the error names step, rule and what to do
    |  |- PermissionDenied     no rule allows it, or one blocks it
    |  |- UnknownTarget        there is no such agent
    |  |- InvalidMessage       the message itself is wrong (id, type, JSON, size)
    |  |- DataBlocked          it holds what data-loss prevention blocks; leave that out
    |  |- IdReused             the id was used before, for other content
    |  |- Overloaded           the target's inbox, the log, or the room for delayed messages is full
    |  |- RateLimited          the sender has sent as much as it may; error.retry_after says when it may again
    |  |- CircuitOpen          the target fails at the moment; error.retry_after says when it is tried again
    |  |- PolicyStale          the policy service cannot confirm its policy; retry later
    |  |- ForeignReply         this agent was not the one asked
    |- RequestTimeout          no reply within the timeout (also a TimeoutError)
    |- RequestFailed           the target gave the request up; there will be no reply, or no more of it
    |- StreamCancelled         nobody reads this streamed reply any more
    |- StateError
       |- StateInvalid         the update does not fit the state model; nothing was written
       |- StateConflict        another instance wrote first; refresh_state() and decide again
       |- StateCorrupt         what is stored does not fit the model; it is left as it is

``Reject`` is not in the tree: a handler raises it to say that a message must not be tried again.
"""

from __future__ import annotations

from typing import Any

from mas_nats.wire.verdict import Decision, Verdict


class MasError(Exception):
    """Anything this library raises."""


class ConfigurationError(MasError):
    """An option, a certificate or an address is missing or wrong."""


class IdentityRefused(MasError):
    """The broker refused this certificate."""


class Unavailable(MasError):
    """Nobody could take the call. Nothing happened; repeating is safe."""


class OutcomeUnknown(MasError):
    """The call went out and no answer came.

    Repeating it with ``id=error.message_id`` is safe: it is stored once.
    """

    def __init__(self, message_id: str, text: str) -> None:
        super().__init__(text)
        self.message_id = message_id

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is copied, and carried to another process."""
        return type(self), (self.message_id, str(self))


class Refused(MasError):
    """Policy said no.

    ``verdict`` names the step, the rule, the reason and what to do.
    """

    def __init__(self, verdict: Verdict) -> None:
        text = f"{verdict.decision}: {verdict.reason}"
        if verdict.fix:
            text = f"{text}. {verdict.fix}"
        super().__init__(text)
        self.verdict = verdict

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is copied, and carried to another process."""
        return type(self), (self.verdict,)

    @property
    def decision(self) -> Decision:
        """The decision's name, as the audit has it."""
        return self.verdict.decision

    @property
    def message_id(self) -> str:
        """The id under which the refusal is audited."""
        return self.verdict.message_id

    @property
    def retry_after(self) -> float:
        """Seconds after which the same call may succeed; 0 where that is not known."""
        return self.verdict.retry_after


class PermissionDenied(Refused):
    """No rule allows it, or one blocks it."""


class UnknownTarget(Refused):
    """There is no such agent."""


class InvalidMessage(Refused):
    """The message itself is wrong: its target's form, its type, its JSON, its size."""


class DataBlocked(Refused):
    """It holds what data-loss prevention blocks. ``verdict.rule`` names the types; nothing was delivered.

    A handler that lets it pass is not called again for this message: the same would be blocked again.
    """


class IdReused(Refused):
    """The id was used before, for other content."""


class Overloaded(Refused):
    """The target's inbox, or the log, is full, or too much of the sender is delayed already. Retry later."""


class RateLimited(Refused):
    """The sender has sent as much as it may for now. ``retry_after`` says when it may send again."""


class CircuitOpen(Refused):
    """The target has failed too often lately. ``retry_after`` says when it is tried again."""


class PolicyStale(Refused):
    """The policy service cannot confirm that its policy is current. Retry later."""


class ForeignReply(Refused):
    """This agent is not the one that was asked."""


class RequestTimeout(MasError, TimeoutError):
    """No reply within the timeout."""


class RequestFailed(MasError):
    """There will be no reply, or no more of a streamed one.

    ``decision`` says why: ``DEAD`` (the target gave it up, or its handler failed while it streamed),
    ``ID_REUSED`` (a second attempt of the handler did not answer as the first had begun), ``UNAVAILABLE``
    (frames were lost with a restart of the broker).
    """

    def __init__(self, decision: Decision, text: str) -> None:
        super().__init__(text)
        self.decision = decision

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is copied, and carried to another process."""
        return type(self), (self.decision, str(self))


class StreamCancelled(MasError):
    """Nobody reads this streamed reply any more: its requester left, or has stopped waiting.

    Raised in the handler that writes it. A handler that lets it pass has done its work: the message is
    acknowledged.
    """


class StateError(MasError):
    """Something about an agent's durable state."""


class StateInvalid(StateError):
    """The update does not fit the state model. Nothing was written."""


class StateConflict(StateError):
    """Another instance wrote first. Call ``refresh_state()`` and decide again."""


class StateCorrupt(StateError):
    """What is stored does not fit the state model. It is left as it is."""


class Reject(Exception):
    """Raised by a handler: do not try this message again, dead-letter it with this reason."""


_BY_DECISION: dict[Decision, type[Refused]] = {
    Decision.AUTHZ_DENIED: PermissionDenied,
    Decision.UNKNOWN_TARGET: UnknownTarget,
    Decision.INVALID: InvalidMessage,
    Decision.TOO_LARGE: InvalidMessage,
    Decision.DLP_BLOCKED: DataBlocked,
    Decision.ID_REUSED: IdReused,
    Decision.INBOX_FULL: Overloaded,
    Decision.LOG_FULL: Overloaded,
    Decision.DELAYED_FULL: Overloaded,
    Decision.RATE_LIMITED: RateLimited,
    Decision.CIRCUIT_OPEN: CircuitOpen,
    Decision.POLICY_STALE: PolicyStale,
    Decision.REPLY_FOREIGN: ForeignReply,
}


def error_of(verdict: Verdict) -> MasError:
    """The error for a refusing verdict."""
    if verdict.decision is Decision.UNAVAILABLE:
        return Unavailable(f"{verdict.reason}. {verdict.fix}" if verdict.fix else verdict.reason)
    if verdict.decision is Decision.STATE_CONFLICT:
        return StateConflict(verdict.reason)
    return _BY_DECISION.get(verdict.decision, Refused)(verdict)
