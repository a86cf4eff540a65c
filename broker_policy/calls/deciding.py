"""Decisions: under which policy a call is judged, and the line that says what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.lines import line_of
from broker_policy.pipeline import Call, Refusal, judge
from broker_policy.policy.follower import PolicyFollower
from broker_policy.registry import Registry
from broker_policy.sealing import Sealer
from mas_nats.policy import refusals
from mas_nats.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.verdict import Decision


@dataclass(frozen=True, slots=True)
class Deciding:
    """Decides for one namespace. ``room``: bytes of a body that the server carries with its headers."""

    namespace: str
    follower: PolicyFollower
    registry: Registry
    sealer: Sealer
    room: Callable[[], int]
    clock: Milliseconds = wall_clock

    @property
    def revision(self) -> int:
        """The policy revision of what is decided now."""
        return self.follower.revision

    def current(self) -> Table | None:
        """The policy of the moment; None where none is known for certain."""
        return None if self.follower.stale else self.follower.table(self.namespace)

    def table(self, call: Call) -> Table | Refusal:
        """The policy under which ``call`` is judged, or why it cannot be."""
        table = self.current()
        if table is None:
            return refusals.policy_stale()
        if table.agent(call.sender) is None:
            return refusals.unknown_sender(call.sender)
        return table

    def refusal(self, call: Call, table: Table) -> Refusal | None:
        """What the pipeline has against ``call``."""
        room = self.room()
        if len(call.body) > room:  # the server would end the connection of whoever passes it on
            return refusals.too_large(len(call.body), room)
        return judge(call, table)

    def refused(self, call: Call, refusal: Refusal) -> DecisionLine:
        """The line of a refusal."""
        return self._line(call, refusal.decision, refusal.rule, Way.NONE, "")

    def allowed(self, call: Call, rule: str, way: Way, commitment: str) -> DecisionLine:
        """The line of what ``rule`` allows."""
        return self._line(call, Decision.ALLOWED, rule, way, commitment)

    def envelope(self, call: Call, salt: bytes) -> dict[str, str]:
        """The headers of what goes out, made from nothing (DESIGN 4)."""
        fields = {
            headers.MESSAGE_ID: call.message_id,
            headers.SENDER: call.sender,
            headers.TYPE: call.type,
            headers.SENT: str(call.received),
            headers.SALT: salt.hex(),
        }
        if call.traceparent:
            fields[headers.TRACEPARENT] = call.traceparent
            if call.tracestate:
                fields[headers.TRACESTATE] = call.tracestate
        return fields

    def _line(self, call: Call, decision: Decision, rule: str, way: Way, commitment: str) -> DecisionLine:
        fingerprint = self.registry.fingerprint(call.sender)
        return line_of(call, decision, rule, way, commitment, fingerprint, self.clock())
