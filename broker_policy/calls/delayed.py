"""Delay and withdraw: a message to be delivered later, judged now and again when it is due (ADR 16)."""

from __future__ import annotations

from broker_policy.admission.admission import Admission
from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.admitting import Limited
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.delayed.stream import DelayedStream, Held
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import commitment
from mas_nats.policy import refusals
from mas_nats.policy.shape import unfit_time, well_formed
from mas_nats.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.verdict import Verdict, accepted


class DelayedCalls:
    """Takes the ``delay`` and ``withdraw`` calls of one namespace."""

    def __init__(
        self,
        delayed: DelayedStream,
        deciding: Deciding,
        acting: Acting,
        *,
        admission: Admission,
        asides: Asides,
    ) -> None:
        self._delayed = delayed
        self._deciding = deciding
        self._acting = acting
        self._limited = Limited(
            "delayed messages",
            deciding,
            admission,
            forbidden=self._forbidden,
            decide=self._decide,
            asides=asides,
        )

    def take(self, call: Call) -> None:
        """Decide about a message, and hold it until it is due; where limits are set, once they were asked."""
        self._limited.take(call)

    async def stop(self) -> None:
        """Decide about what was taken."""
        await self._limited.stop()

    def _decide(self, call: Call, refusal: Refusal | None) -> None:
        table = self._allowed(call, refusal)
        if isinstance(table, Refusal):
            self._acting.refuse(call, table)
            return
        salt = self._deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)
        fields = self._deciding.envelope(call, salt)
        fields |= {headers.TARGET: call.target, headers.DUE: str(call.due)}

        async def hold(reference: str) -> tuple[Verdict, Outcome]:
            return await self._hold(call, fields | {headers.AUDIT: reference}, table.limits.delayed_messages)

        self._acting.perform(call, self._deciding.allowed(call, "permissions", Way.ACT, committed), hold)

    def take_back(self, call: Call) -> None:
        """Cancel a message of the caller's own: only there is where its name can be."""
        call.target, call.type = call.sender, "withdraw"
        table = self._deciding.table(call)
        refusal = table if isinstance(table, Refusal) else well_formed(call)
        if refusal is not None:
            self._acting.refuse(call, refusal)
            return

        self.withdraw(call, "own_message")

    def withdraw(self, call: Call, rule: str) -> None:
        """Record that ``rule`` allows it, then take the message back that ``call`` names, of its sender."""

        async def cancel(_: str) -> tuple[Verdict, Outcome]:
            cancelled = await self._delayed.cancel(call.sender, call.message_id)
            outcome = Outcome.APPLIED if cancelled else Outcome.FAILED
            return accepted(call.message_id, cancelled=cancelled), outcome

        self._acting.perform(call, self._deciding.allowed(call, rule, Way.ACT, ""), cancel)

    def _allowed(self, call: Call, refusal: Refusal | None) -> Table | Refusal:
        """The first refusal of all steps; ``refusal`` is that of the limits."""
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        return self._forbidden(call, table) or refusal or self._deciding.inspected(call, table) or table

    def _forbidden(self, call: Call, table: Table) -> Refusal | None:
        return self._deciding.forbidden(call, table) or unfit_time(call, table.limits)

    async def _hold(self, call: Call, fields: dict[str, str], most: int) -> tuple[Verdict, Outcome]:
        held = await self._delayed.hold(call.sender, call.message_id, call.body, fields, most)
        match held:
            case Held.STORED:
                return accepted(call.message_id), Outcome.APPLIED
            case Held.KNOWN:
                return accepted(call.message_id, duplicate=True), Outcome.DUPLICATE
            case Held.OTHER:
                refusal = refusals.id_reused()
            case Held.TOO_MANY:
                refusal = refusals.delayed_full(call.sender, most)
            case Held.TOO_LARGE:
                refusal = refusals.delayed_large(call.sender)
            case Held.NO_ROOM:
                refusal = refusals.delayed_bytes()
        return refusal.verdict(call.message_id), Outcome.FAILED
