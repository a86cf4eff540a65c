"""Failure reports: what an agent says of a delivery it could not handle."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from broker_policy.audit.record import Outcome, Report
from broker_policy.calls.acting import Acting
from broker_policy.calls.deciding import Deciding
from broker_policy.dead_letters.undertaker import EXHAUSTED, NoRoom, NotYours, Record, Undertaker, Watch
from broker_policy.jetstream import StoredMessage
from broker_policy.printable import printable
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.numbers import Positive
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict, accepted

EXPIRED = "EXPIRED"
"""The error class of a report about a request that ran out of time before it was handled."""
_HELD_BACK = frozenset({"RateLimited", "CircuitOpen"})
"""Error classes of a handler that was itself held back, by its limits or the circuit of another."""


class _Failure(BaseModel):
    """The body of a report, as any agent may have made it up."""

    sequence: Positive
    attempt: Positive
    error_class: str
    error: str = ""
    retryable: bool
    handler_failed: bool | None = None  # None: an SDK that does not say whose fault it was

    @property
    def counts(self) -> bool:
        """Whether the agent failed, and not the message or those whom the handler asked."""
        failed = self.retryable if self.handler_failed is None else self.handler_failed
        return failed and self.error_class not in _HELD_BACK

    @property
    def reason(self) -> str:
        """The error's class as it may stand in a header and in a record."""
        return printable(self.error_class, 100) or "unnamed"

    @property
    def text(self) -> str:
        """Class and text of the error."""
        return printable(f"{self.reason}: {self.error}", 400)


class FailureReports:
    """Takes the ``fail`` calls of one namespace."""

    def __init__(
        self,
        undertaker: Undertaker,
        record: Record,
        deciding: Deciding,
        acting: Acting,
        *,
        watch: Watch,
    ) -> None:
        self._undertaker = undertaker
        self._record = record
        self._deciding = deciding
        self._acting = acting
        self._watch = watch

    async def report(self, call: Call) -> Verdict:
        """Answer one report: the message is tried again, or it is dead now."""
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            failure = _Failure.model_validate_json(call.body)
        except ValidationError:
            text = "a failure report needs sequence, attempt, error_class, error and retryable"
            return refusals.invalid("fail", text).verdict(call.message_id)
        clean = {  # before it is cut: half a secret is not found
            "error": printable(self._deciding.clean(failure.error), 300),
            "error_class": self._deciding.clean(failure.error_class),
        }
        failure = failure.model_copy(update=clean)
        try:
            stored = await self._undertaker.find(call.sender, failure.sequence)
        except NotYours as problem:
            refusal = Refusal(Decision.AUTHZ_DENIED, "fail", "own_inbox", str(problem))
            call.target, call.type, call.message_id = call.sender, "fail", str(failure.sequence)
            return await self._acting.refused(call, refusal)
        if stored is None:
            # Never "dead", which the agent acknowledges: a node that led, or will lead, may not know of the
            # message (found by make chaos). Where it is gone, giving it back does nothing.
            return accepted(call.message_id, dead=False, error=failure.error)
        return await self._settle(call, stored, failure, table.limits.max_deliver)

    async def _settle(
        self, call: Call, stored: StoredMessage, failure: _Failure, max_deliver: int
    ) -> Verdict:
        if failure.error_class == EXPIRED and headers.DEADLINE in stored.headers:
            await self._watch.inconclusive(call.sender, _dedup(stored))
            await self._record(_report(call, failure, Outcome.EXPIRED))
            return accepted(call.message_id, dead=False, expired=True)
        if failure.retryable and failure.attempt < max_deliver:
            if failure.counts:
                await self._watch.failed(call.sender, _dedup(stored))
            await self._undertaker.remember(failure.sequence, failure.text)
            await self._record(_report(call, failure, Outcome.REDELIVERED))
            return accepted(call.message_id, dead=False, error=failure.error)
        reason = EXHAUSTED if failure.retryable else failure.reason
        try:
            await self._undertaker.bury(
                call.sender,
                stored,
                reason=reason,
                attempt=failure.attempt,
                error=failure.text,
                failed=failure.counts,
            )
        except NoRoom as full:
            return refusals.not_buried(str(full)).verdict(call.message_id)
        return accepted(call.message_id, dead=True, error=failure.error)


def _dedup(stored: StoredMessage) -> str:
    return stored.headers.get(headers.MSG_ID, "")


def _report(call: Call, failure: _Failure, outcome: Outcome) -> Report:
    sequence, attempt = failure.sequence, failure.attempt
    return Report(call.sender, sequence, outcome, attempt, failure.reason, call.received)
