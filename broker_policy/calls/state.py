"""State calls: an agent reads and writes its own state, each write a decision of its own.

An operator's are the same, in the agent's stead: judged alike, with the operator's name in the audit.
"""

from __future__ import annotations

from broker_policy.agent_state import Conflict, Reused, StateBucket
from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import commitment
from mas_nats.policy import refusals
from mas_nats.policy.shape import well_formed
from mas_nats.policy.state_call import BadStateCall, StateCall
from mas_nats.policy.table import Table
from mas_nats.wire.verdict import Verdict, accepted


class StateCalls:
    """Takes the ``state`` calls of one namespace."""

    def __init__(self, states: StateBucket, deciding: Deciding, acting: Acting, asides: Asides) -> None:
        self._states = states
        self._deciding = deciding
        self._acting = acting
        self._asides = asides

    def take(self, call: Call) -> None:
        """Read, or decide about a write and perform it."""
        call.target, call.type = call.sender, "state"
        wanted = self._wanted(call)
        if isinstance(wanted, Refusal):
            self._acting.refuse(call, wanted)
            return
        if wanted.op == "get":
            self._asides.take(call, self._read)
            return
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, wanted.value)

        async def write(reference: str) -> tuple[Verdict, Outcome]:
            return await self._write(call, wanted, reference)

        rule = "operator" if call.errand else "own_state"
        self._acting.perform(call, self._deciding.allowed(call, rule, Way.ACT, committed), write)

    def _wanted(self, call: Call) -> StateCall | Refusal:
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        if (refusal := well_formed(call)) is not None:
            return refusal
        try:
            wanted = StateCall.read(call.body, min(table.limits.max_state, self._deciding.room()))
        except BadStateCall as error:
            return refusals.invalid("state", str(error))
        return self._inspected(call, wanted, table)

    def _inspected(self, call: Call, wanted: StateCall, table: Table) -> StateCall | Refusal:
        """The call as it may be done; a state may be redacted like a message."""
        if wanted.op == "get":
            return wanted
        if (refusal := self._deciding.inspection.inspect(call, table)) is not None:
            return refusal
        try:
            return StateCall.read(call.body, self._deciding.room())
        except BadStateCall as error:  # placeholders are longer than what they stand for
            return refusals.invalid("state", str(error))

    async def _read(self, call: Call) -> Verdict:
        stored = await self._states.get(call.sender)
        return accepted(call.message_id, revision=stored.revision, value=stored.value, corrupt=stored.corrupt)

    async def _write(self, call: Call, wanted: StateCall, reference: str) -> tuple[Verdict, Outcome]:
        try:
            revision = await self._states.write(call.sender, wanted, call.message_id, reference)
        except Conflict:
            return refusals.state_conflict(call.sender).verdict(call.message_id), Outcome.FAILED
        except Reused:
            return refusals.id_reused().verdict(call.message_id), Outcome.FAILED
        return accepted(call.message_id, revision=revision), Outcome.APPLIED
