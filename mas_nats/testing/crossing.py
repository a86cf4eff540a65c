"""Messages of one in-memory namespace to agents of others, and the replies to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mas_nats.policy import refusals
from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call
from mas_nats.testing.deciding import Deciding, seen
from mas_nats.testing.replies import Capability, Replies
from mas_nats.wire import headers
from mas_nats.wire.identity import agent_of, namespace_of, split_target
from mas_nats.wire.verdict import Verdict, accepted


@dataclass(slots=True)
class Crossing:
    """The ways in and out of one namespace. ``message`` takes one that is for an agent of it."""

    deciding: Deciding
    replies: Replies
    message: Callable[[Call], Verdict]
    neighbours: Mapping[str, Crossing] = field(default_factory=dict)

    def concerns(self, call: Call) -> bool:
        """Whether ``call`` names an agent of another namespace."""
        try:
            namespace, _ = split_target(call.target)
        except ValueError:
            return False
        return namespace not in (None, self.deciding.table.namespace)

    def take(self, call: Call) -> Verdict:
        """Decide about a message, then let the other side decide; its verdict is the answer."""
        refused = self.refused(call)
        if refused is not None:
            return refused
        self.deciding.allow(call, "permissions")
        verdict = self.neighbours[namespace_of(call.target)].message(self._brought(call))
        if not verdict.ok:
            self.deciding.note(call, verdict)
        return verdict

    def refused(self, call: Call) -> Verdict | None:
        """The refusal of either side, noted on both where it is the other's."""
        call.crosses = True
        if (refusal := self.deciding.judge(call)) is not None:
            return self.deciding.refuse(call, refusal)
        sender = f"{self.deciding.table.namespace}/{call.sender}"
        there = self.neighbours.get(namespace_of(call.target))
        brought = self._brought(call)
        if there is not None and there.deciding.table.accepts(sender, brought.target):
            return None
        told = refusals.not_accepted(sender, call.target)
        if there is not None:
            there.deciding.refuse(brought, authorize(brought, there.deciding.table) or told)
        return self.deciding.refuse(call, told)

    def reply(self, call: Call, capability: Capability) -> Verdict:
        """Take a reply to where the request came from."""
        self.deciding.allow(call, "capability")
        return self.neighbours[capability.namespace].came(self._brought(call), capability)

    def came(self, call: Call, capability: Capability) -> Verdict:
        """Decide about a reply from elsewhere, and deliver it."""
        if (refusal := self.deciding.judge(call)) is not None:
            return self.deciding.refuse(call, refusal)
        fields = self.deciding.envelope(call) | {headers.AUDIT: self.deciding.allow(call, "capability")}
        first = self.replies.store(capability.answer(), call.body, fields)
        if first:
            self.deciding.ledger.replies.append(seen(call))
        return accepted(call.message_id, duplicate=not first)

    def _brought(self, call: Call) -> Call:
        namespace = self.deciding.table.namespace
        return replace(
            call,
            sender=f"{namespace}/{call.sender}",
            target=agent_of(call.target),
            origin=namespace,
            crosses=False,
            stream=False,
        )
