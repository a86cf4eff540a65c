"""Decisions: under which policy a call is judged, and the line that says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker_policy.audit.record import DecisionLine, Way
from broker_policy.clock import Milliseconds, wall_clock
from broker_policy.commit.lines import line_of
from broker_policy.dlp import Ruleset, redact_text
from broker_policy.pipeline import Call, Refusal, judge
from broker_policy.pipeline.dlp import Inspection
from broker_policy.policy.follower import PolicyFollower
from broker_policy.registry import Registry
from broker_policy.sealing import Sealer
from mas_nats.policy import refusals
from mas_nats.policy.table import Table
from mas_nats.wire import headers
from mas_nats.wire.identity import agent_of
from mas_nats.wire.subjects import ANSWERING
from mas_nats.wire.verdict import Decision

_ALLOWED = Decision.ALLOWED  # looked up once, as in ``audit.entry``


@dataclass(frozen=True, slots=True)
class Deciding:
    """Decides for one namespace. ``room``: bytes of a body that the server carries with its headers."""

    namespace: str
    follower: PolicyFollower
    registry: Registry
    sealer: Sealer
    room: Callable[[], int]
    clock: Milliseconds = wall_clock
    inspection: Inspection = field(default_factory=Inspection)

    @property
    def revision(self) -> int:
        """The policy revision of what is decided now."""
        return self.follower.revision

    def current(self) -> Table | None:
        """The policy of the moment; None where none is known for certain."""
        return None if self.follower.stale else self.follower.table(self.namespace)

    def table(self, call: Call) -> Table | Refusal:
        """The policy under which ``call`` is judged, or why it cannot be."""
        return self._table(call, self.current())

    def _table(self, call: Call, table: Table | None) -> Table | Refusal:
        if table is None:
            return refusals.policy_stale()
        if call.origin:
            return self._sender_side(call) or table
        if table.agent(call.sender) is None:
            return refusals.unknown_sender(call.sender)
        return table

    def _sender_side(self, call: Call) -> Refusal | None:
        """What the namespace that a message came from has against it by now. A reply has its capability."""
        if call.op in ANSWERING:
            return None
        home, sender = self.follower.table(call.origin), agent_of(call.sender)
        there = f"{self.namespace}/{call.target}"
        if home is not None and home.lets(sender, there):
            return None
        return refusals.withdrawn(call.sender, there)

    def refusal(self, call: Call, table: Table) -> Refusal | None:
        """What the pipeline has against ``call``, where neither limits nor circuits concern it."""
        return self.forbidden(call, table) or self.inspected(call, table)

    def forbidden(self, call: Call, table: Table) -> Refusal | None:
        """What shape and permission have against ``call``."""
        return self._forbidden(call, table, self.room())

    @staticmethod
    def _forbidden(call: Call, table: Table | Refusal, room: int) -> Refusal | None:
        if isinstance(table, Refusal):
            return table
        if len(call.body) > room:  # the server would end the connection of whoever passes it on
            return refusals.too_large(len(call.body), room)
        return judge(call, table)

    def inspected(self, call: Call, table: Table) -> Refusal | None:
        """What the content of ``call`` has against it; it may be another one afterwards."""
        if (refusal := self.inspection.inspect(call, table)) is not None:
            return refusal
        room = self.room()
        size = len(call.body)  # placeholders may be longer than what they stand for
        return refusals.too_large(size, room) if size > room else None

    def forbidden_now(self, call: Call) -> Refusal | None:
        """The same as ``forbidden``, under the policy of the moment."""
        return self.all_forbidden_now([call])[0]

    def all_forbidden_now(self, calls: Sequence[Call]) -> list[Refusal | None]:
        """The same of each of ``calls``."""
        current, room = self.current(), self.room()
        return [self._forbidden(call, self._table(call, current), room) for call in calls]

    def inspected_now(self, call: Call) -> Refusal | None:
        """The same as ``inspected``: the last step, so that what does not pass anyway costs no search."""
        table = self.table(call)
        return table if isinstance(table, Refusal) else self.inspected(call, table)

    def clean_now(self, calls: Sequence[Call]) -> list[bool]:
        """Of each of ``calls`` whether its content surely has nothing against it, by one search of all."""
        table = self.current()
        return [False] * len(calls) if table is None else self.inspection.clean(calls, table)

    def rules(self) -> Ruleset | None:
        """The rules of data-loss prevention that hold now; None where there are none to judge by."""
        table = self.follower.table(self.namespace)
        return None if table is None else self.inspection.rules(table)

    def clean(self, text: str) -> str:
        """``text`` for a record, a header or a dead letter: without what may not be delivered."""
        rules = self.rules()
        return redact_text(rules, text) if rules is not None else ""

    def refused(self, call: Call, refusal: Refusal, now: int | None = None) -> DecisionLine:
        """The line of a refusal; ``now`` as for ``allowed``."""
        line = self._line(call, refusal.decision, refusal.rule, Way.NONE, "", now)
        said = f"{line.type} {line.message_id} {line.target}"
        if (rules := self.rules()) is None or redact_text(rules, said) == said:
            return line
        return line._replace(
            type=redact_text(rules, line.type),
            message_id=redact_text(rules, line.message_id),
            target=redact_text(rules, line.target),
        )

    def allowed(
        self, call: Call, rule: str, way: Way, commitment: str, now: int | None = None
    ) -> DecisionLine:
        """The line of what ``rule`` allows, or of what data-loss prevention found in it.

        ``now``: when that was decided, by the clock of this service; None: at this moment.
        """
        if call.finding is not None:
            return self._line(call, call.finding.decision, call.finding.rule, way, commitment, now)
        return self._line(call, _ALLOWED, rule, way, commitment, now)

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

    def _line(
        self, call: Call, decision: Decision, rule: str, way: Way, commitment: str, now: int | None
    ) -> DecisionLine:
        fingerprint = call.certificate or ("" if call.origin else self.registry.fingerprint(call.sender))
        return line_of(
            call, decision, rule, way, commitment, fingerprint, self.clock() if now is None else now
        )
