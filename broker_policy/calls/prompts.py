"""Prompts: what an agent's sidecar asks before a request leaves for a language model (ADR 34).

The service does not carry it there, and never sees the key to it. It judges, searches and records the content
like that of a message, and says what of it may leave.
"""

from __future__ import annotations

import orjson

from broker_policy.admission.admission import Admission
from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.admitting import Limited
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.calls.model_answers import ModelAnswers
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import commitment
from mas_nats.policy.model_answer import is_answer
from mas_nats.policy.prompt import LLM_RULE, prompt
from mas_nats.policy.table import Table
from mas_nats.wire.verdict import Verdict, accepted


class PromptCalls:
    """Takes the ``prompt`` calls of one namespace."""

    def __init__(
        self,
        deciding: Deciding,
        acting: Acting,
        answers: ModelAnswers,
        *,
        admission: Admission,
        asides: Asides,
    ) -> None:
        self.answers = answers
        self._deciding = deciding
        self._acting = acting
        self._limited = Limited(
            "prompts", deciding, admission, forbidden=self._forbidden, decide=self._decide, asides=asides
        )

    def take(self, call: Call) -> None:
        """Decide about a prompt; where limits are set, once they were asked. Answers are not counted."""
        if is_answer(call):
            self.answers.take(call)
        else:
            self._limited.take(call)

    async def stop(self) -> None:
        """Decide about what was taken."""
        await self._limited.stop()

    def _decide(self, call: Call, limits: Refusal | None) -> None:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            self._acting.refuse(call, table)
            return
        said = call.body
        against = self._forbidden(call, table) or limits or self._deciding.inspected(call, table)
        if against is not None:
            self._acting.refuse(call, against)
            return
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)

        async def let_go(_: str) -> tuple[Verdict, Outcome]:
            changed = {} if call.body is said else {"body": orjson.loads(call.body)}
            return accepted(call.message_id, **changed), Outcome.APPLIED

        self._acting.perform(call, self._deciding.allowed(call, LLM_RULE, Way.ACT, committed), let_go)

    def _forbidden(self, call: Call, table: Table) -> Refusal | None:
        return prompt(call, table, self._deciding.room())
