"""Failure reports: what an agent says of a delivery it could not handle."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from broker_policy import refusals
from broker_policy.audit.record import Outcome, Report
from broker_policy.dead_letters.undertaker import NotYours, Record, Undertaker
from broker_policy.jetstream import StoredMessage
from broker_policy.pipeline.call import Call, Refusal
from broker_policy.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision, Verdict, accepted

EXPIRED = "EXPIRED"
"""The error class of a report about a request that ran out of time before it was handled."""
EXHAUSTED = "EXHAUSTED"
"""The reason of a dead letter that failed as often as it was allowed to."""


@dataclass(frozen=True, slots=True)
class _Failure:
    sequence: int
    attempt: int
    error_class: str
    error: str
    retryable: bool

    @classmethod
    def read(cls, body: bytes) -> _Failure:
        raw = orjson.loads(body)
        error_class = str(raw["error_class"])[:100]
        error = f"{error_class}: {raw.get('error', '')}"[:400]
        return cls(int(raw["sequence"]), int(raw["attempt"]), error_class, error, bool(raw["retryable"]))


class FailureReports:
    """Takes the ``fail`` calls of one namespace."""

    def __init__(
        self, undertaker: Undertaker, record: Record, table: Callable[[Call], Table | Refusal]
    ) -> None:
        self._undertaker = undertaker
        self._record = record
        self._table = table

    async def report(self, call: Call) -> Verdict:
        """Answer one report: the message is tried again, or it is dead now."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            failure = _Failure.read(call.body)
        except (KeyError, TypeError, ValueError):
            text = "a failure report needs sequence, attempt, error_class, error and retryable"
            return refusals.invalid("fail", text).verdict(call.message_id)
        try:
            stored = await self._undertaker.find(call.sender, failure.sequence)
        except NotYours as problem:
            return Refusal(Decision.AUTHZ_DENIED, "fail", "own_inbox", str(problem)).verdict(call.message_id)
        if stored is None:
            return accepted(call.message_id, dead=True)
        return await self._settle(call, stored, failure, table.limits.max_deliver)

    async def _settle(
        self, call: Call, stored: StoredMessage, failure: _Failure, max_deliver: int
    ) -> Verdict:
        if failure.error_class == EXPIRED and headers.DEADLINE in stored.headers:
            await self._record(_report(call, failure, Outcome.EXPIRED))
            return accepted(call.message_id, dead=False, expired=True)
        if failure.retryable and failure.attempt < max_deliver:
            await self._undertaker.remember(failure.sequence, failure.error)
            await self._record(_report(call, failure, Outcome.REDELIVERED))
            return accepted(call.message_id, dead=False)
        reason = EXHAUSTED if failure.retryable else failure.error_class
        buried = await self._undertaker.bury(
            call.sender, stored, reason=reason, attempt=failure.attempt, error=failure.error
        )
        if not buried:
            return refusals.log_full().verdict(call.message_id)
        return accepted(call.message_id, dead=True)


def _report(call: Call, failure: _Failure, outcome: Outcome) -> Report:
    now = time.time_ns() // 1_000_000
    return Report(call.sender, failure.sequence, outcome, failure.attempt, failure.error_class, now)
