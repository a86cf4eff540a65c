"""What is told of a message: to who sent it, to who watches, and to the repetitions that may come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import nats.errors

from broker_policy.commit.inbox_bytes import InboxBytes
from broker_policy.commit.judged import Judged
from broker_policy.commit.writer import Prepared, RecordWriter
from broker_policy.dedup import RecentIds
from broker_policy.telemetry.watching import Watch
from mas_nats.policy.call import Call
from mas_nats.wire.bundle import PLAIN
from mas_nats.wire.verdict import Verdict, accepted

Answer = Callable[[Call, Verdict], Awaitable[None] | None]
"""Takes the verdict of a call; what it returns sends the answer. None where there is nothing to send yet."""
Probed = Callable[[Call, int], None]
"""Told of each probe where it lies in the inbox, or 0 when it was refused after all."""


class Answers:
    """Tells verdicts, once they are on record and what they accept is stored."""

    def __init__(
        self,
        writer: RecordWriter,
        answer: Answer,
        probed: Probed,
        recent: RecentIds,
        inboxes: InboxBytes,
        watch: Watch | None,
    ) -> None:
        self._writer = writer
        self._answer = answer
        self._probed = probed
        self._recent = recent
        self._inboxes = inboxes
        self._watch = watch

    def decided(self, judged: Sequence[Judged]) -> None:
        """Tell who watches what was decided of each."""
        if self._watch is not None:
            for each in judged:
                if each.call.watched is not None:
                    each.call.watched.decided(each.line)

    def recorded(self, prepared: Prepared, judged: Sequence[Judged]) -> None:
        """Tell who watches, of each in the order of the record."""
        if self._watch is not None:
            for position, each in enumerate(judged):
                if each.call.watched is not None:
                    each.call.watched.recorded(prepared.reference(position))

    def batched(self, items: Sequence[Judged], begun: float) -> None:
        """Tell who watches that they were stored together, in a batch begun then (``perf_counter``)."""
        if self._watch is not None:
            self._watch.batched([each.call.watched for each in items if each.call.watched], begun)

    async def stored(self, judged: Judged, sequence: int) -> None:
        """Say that its message is stored; of a probe, where: ``sequence`` in the inbox."""
        if judged.call.probe:
            self._probed(judged.call, sequence)
        await self.stored_together([judged])

    async def stored_together(self, items: Sequence[Judged]) -> None:
        """Say of each, none of which is a probe, that its message is stored."""
        size = 0
        for judged in items:
            message = judged.message
            self._recent.add(message.dedup, message.commitment)
            self._inboxes.stored(judged.call.target, len(message.body))
            size += len(message.body)
        self._writer.stored(size, len(items))
        for judged in items:
            call = judged.call
            verdict = PLAIN if call.bundle is not None else accepted(call.message_id)
            if (answer := self._answer(call, verdict)) is not None:
                await self._send(answer)

    async def tell(self, judged: Judged) -> None:
        """Say what became of a call of which nothing was stored."""
        call = judged.call
        if judged.refusal is not None:
            if call.probe:
                self._probed(call, 0)
            await self.reply(call, judged.refusal.verdict(call.message_id))
        else:
            await self.reply(call, accepted(call.message_id, duplicate=True))

    async def reply(self, call: Call, verdict: Verdict) -> None:
        """Answer a call. Where that fails the sender repeats it, under the same id."""
        if (answer := self._answer(call, verdict)) is not None:
            await self._send(answer)

    @staticmethod
    async def _send(answer: Awaitable[None]) -> None:
        try:  # noqa: SIM105 - a context manager takes as long as what is in it
            await answer
        except (nats.errors.Error, OSError):
            pass
