"""Send and request: judged for the inbox lanes, with everything the message will need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker_policy.admission.admission import Admission
from broker_policy.audit.record import Way
from broker_policy.calls.deciding import Deciding
from broker_policy.commit.judged import Judged, Outgoing
from broker_policy.dedup import dedup_of
from broker_policy.pipeline import Call, Refusal
from broker_policy.sealing import ReplyCapability, SealBroken, commitment
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.identity import agent_of
from mas_nats.wire.subjects import Op

_TURN = 0.005
"""Seconds after which judging lets others have their turn."""
_TOGETHER = 16
"""Calls whose content is searched together first. The more there are, the likelier one of them holds
something, and then all are searched one by one."""
_REQUEST, _BATCH = Op.REQUEST, Way.BATCH  # looked up once, as in ``audit.entry``
_NOBODY = "0" * 20
"""An instance that does not exist."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Judges the messages of one namespace."""

    deciding: Deciding
    admission: Admission

    async def judge_all(self, calls: Sequence[Call]) -> list[Judged]:
        """What the pipeline says of each, all under one policy, and what to store where it lets one pass.

        It waits, for a bounded time, only where a limit is set.
        """
        refused = self.deciding.all_forbidden_now(calls)
        table = self.deciding.current()
        if table is not None and self.admission.concerns(table):
            permitted = [place for place, refusal in enumerate(refused) if refusal is None]
            said = await self.admission.admit([calls[place] for place in permitted], table)
            if self.deciding.current() is not table:  # meanwhile somebody may have been forbidden something
                refused = self.deciding.all_forbidden_now(calls)
            for place, refusal in zip(permitted, said, strict=True):
                refused[place] = refused[place] or refusal
        refused = await self._all_inspected(calls, refused)
        now, revision = self.deciding.clock(), self.deciding.revision
        return [
            self._judged(call, refusal, now, revision) for call, refusal in zip(calls, refused, strict=True)
        ]

    @property
    def changes_nothing(self) -> bool:
        """Whether to judge a call leaves everything as it was: nothing is counted, no circuit is tried."""
        table = self.deciding.current()
        return table is not None and not self.admission.concerns(table)

    def holds(self, judged: Sequence[Judged]) -> bool:
        """Whether what was judged a moment ago would be judged in the same way now."""
        revision = self.deciding.revision
        return self.changes_nothing and all(each.revision == revision for each in judged)

    async def _all_inspected(
        self, calls: Sequence[Call], refused: Sequence[Refusal | None]
    ) -> list[Refusal | None]:
        """What is against each after the last step; where that takes long, others have turns meanwhile."""
        table, begun = self.deciding.current(), time.perf_counter()
        out: list[Refusal | None] = []
        for first in range(0, len(calls), _TOGETHER):
            some = range(first, min(first + _TOGETHER, len(calls)))
            let_through = [place for place in some if refused[place] is None]
            clean: set[int] = set()
            if len(let_through) > 1:
                said = self.deciding.clean_now([calls[place] for place in let_through])
                clean = {place for place, each in zip(let_through, said, strict=True) if each}
            for place in some:
                out.append(
                    None if place in clean else refused[place] or self.deciding.inspected_now(calls[place])
                )
                if time.perf_counter() - begun > _TURN:
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
        if self.deciding.current() is table:
            return out
        return [  # all under one policy; what was searched is not searched again
            refusal or self.deciding.forbidden_now(call) or self.deciding.inspected_now(call)
            for call, refusal in zip(calls, refused, strict=True)
        ]

    def judge(self, call: Call) -> Judged:
        """The same of one call that is not going to happen: nothing is counted."""
        return self._judged(
            call,
            self.deciding.forbidden_now(call)
            or self.admission.foresee(call)
            or self.deciding.inspected_now(call),
            self.deciding.clock(),
            self.deciding.revision,
        )

    def _judged(self, call: Call, refusal: Refusal | None, now: int, revision: int) -> Judged:
        deciding = self.deciding
        if refusal is not None:
            return Judged(call, deciding.refused(call, refusal, now), revision, refusal)
        salt = deciding.sealer.salt(call.sender, call.message_id)
        committed = commitment(salt, call.target, call.type, call.body)
        dedup = dedup_of(deciding.namespace, call)
        fields = deciding.envelope(call, salt)
        fields[headers.TARGET], fields[headers.MSG_ID] = call.target, dedup
        if call.errand is not None:
            fields |= {headers.SENT: call.errand.sent, headers.REDRIVES: str(call.errand.redrives)}
            if call.reply_token:
                fields[headers.REPLY_TOKEN] = self._renewed(call)
        if call.op == _REQUEST:
            fields[headers.DEADLINE] = str(call.deadline)
            fields[headers.REPLY_TOKEN] = self._capability(call)
        if call.stream and headers.REPLY_TOKEN in fields:
            fields[headers.STREAM] = "1"
        line = deciding.allowed(call, "permissions", _BATCH, committed, now)
        outgoing = Outgoing(
            subjects.inbox(call.target),
            call.body,
            fields,
            dedup,
            committed,
            salt,
            lambda: self._earlier(call),
        )
        return Judged(call, line, revision, outgoing=outgoing)

    def _renewed(self, call: Call) -> str:
        """The right to answer a request that is redriven, for today's target.

        The requester was told that there will be no reply. The handler may answer all the same and is told
        that it is late, or the second; without the right it would fail. No deadline travels with it, since
        a message whose deadline has passed is not handled.
        """
        sealer = self.deciding.sealer
        try:
            return sealer.seal(replace(sealer.open(call.reply_token), target=self._asked(call)))
        except SealBroken:  # under a key that is no longer accepted: so its deadline has passed for long
            call.deadline = min(call.deadline, call.received)
            call.instance = _NOBODY
            return self._capability(call)

    def _earlier(self, call: Call) -> list[str]:
        salts = self.deciding.sealer.other_salts(call.sender, call.message_id)
        return [commitment(salt, call.target, call.type, call.body) for salt in salts]

    def _capability(self, call: Call) -> str:
        """The right of the target to answer, sealed (ADR 4)."""
        capability = ReplyCapability(
            namespace=call.origin or self.deciding.namespace,
            requester=agent_of(call.sender),
            instance=call.instance,
            correlation=correlation(call.message_id, self.deciding.namespace if call.origin else ""),
            target=self._asked(call),
            message_id=call.message_id,
            deadline=call.deadline,
            stream=call.stream,
        )
        return self.deciding.sealer.seal(capability)

    def _asked(self, call: Call) -> str:
        """The target as a capability names it: by its full name where the requester is elsewhere."""
        return f"{self.deciding.namespace}/{call.target}" if call.origin else call.target
