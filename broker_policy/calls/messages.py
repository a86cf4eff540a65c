"""Send and request: judged for the inbox lanes, with everything the message will need."""

from __future__ import annotations

from dataclasses import dataclass

from broker_policy.audit.record import Way
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.inbox_lane import Judged, Outgoing
from broker_policy.dedup import dedup_id
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import ReplyCapability, commitment
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.subjects import Op


@dataclass(frozen=True, slots=True)
class Messages:
    """Judges the messages of one namespace."""

    deciding: Deciding

    def judge(self, call: Call) -> Judged:
        """What the pipeline says of ``call``, and the message to store where it lets it pass."""
        deciding = self.deciding
        table = deciding.table(call)
        refusal = table if isinstance(table, Refusal) else deciding.refusal(call, table)
        if refusal is not None:
            return Judged(call, deciding.refused(call, refusal), deciding.revision, refusal)
        salt = deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)
        dedup = dedup_id(deciding.namespace, call.sender, call.message_id)
        fields = deciding.envelope(call, salt) | {headers.TARGET: call.target, headers.MSG_ID: dedup}
        if call.op == Op.REQUEST:
            fields[headers.DEADLINE] = str(call.deadline)
            fields[headers.REPLY_TOKEN] = self._capability(call)
            if call.stream:
                fields[headers.STREAM] = "1"
        line = deciding.allowed(call, "permissions", Way.LONE, committed)
        outgoing = Outgoing(subjects.inbox(call.target), call.body, fields, dedup, committed, salt)
        return Judged(call, line, deciding.revision, outgoing=outgoing)

    def _capability(self, call: Call) -> str:
        """The right of the target to answer, sealed (ADR 4)."""
        capability = ReplyCapability(
            namespace=self.deciding.namespace,
            requester=call.sender,
            instance=call.instance,
            correlation=correlation(call.message_id),
            target=call.target,
            message_id=call.message_id,
            deadline=call.deadline,
            stream=call.stream,
        )
        return self.deciding.sealer.seal(capability)
