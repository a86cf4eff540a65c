"""Messages that go by themselves, behind the record of their decisions, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from broker_policy.audit.probe import is_probe
from broker_policy.audit.record import Outcome, RecordKind, Way
from broker_policy.commit.answered import MaybeStored, Withheld, publish_until_answered, until_answered
from broker_policy.commit.answers import Answers
from broker_policy.commit.behind import Behind, Unacknowledged
from broker_policy.commit.judged import Judged, revision
from broker_policy.commit.suspects import Suspects
from broker_policy.commit.writer import Prepared, RecordWriter
from broker_policy.dedup import RecentIds
from broker_policy.jetstream import Ack, JetStreamError, StoredMessage, get_known, subject_full
from broker_policy.sealing import commitment
from mas_nats.asking import AskingClient
from mas_nats.policy import refusals
from mas_nats.policy.call import Refusal
from mas_nats.wire import headers, subjects
from mas_nats.wire.subjects import RELEASE

Recall = Callable[[str, str], Awaitable[str | None]]
"""The commitment to what a sender sent under an id, from the audit; None where it is not known."""


class Lone:
    """Plain publishes. ``single`` says whether it is certain that one node keeps the log."""

    def __init__(
        self,
        nc: AskingClient,
        writer: RecordWriter,
        answers: Answers,
        *,
        recall: Recall,
        recent: RecentIds,
        suspects: Suspects,
        single: Callable[[], bool],
    ) -> None:
        self._nc = nc
        self._writer = writer
        self._answers = answers
        self._recall = recall
        self._recent = recent
        self._suspects = suspects
        self._behind = Behind(nc, single)

    async def commit(self, told: Sequence[Judged], items: Sequence[Judged], *, behind: bool) -> None:
        """Commit each by itself. ``behind``: one that is alone right behind its record, where that can be."""
        lines = [judged.line._replace(way=Way.LONE) for judged in items]
        lines += [judged.line for judged in told]
        self._writer.require_room()
        prepared = self._writer.prepare(RecordKind.DECISIONS, lines, revision=revision([*items, *told]))
        alone = behind and len(items) == 1
        early = await self._behind.publish(prepared, items[0].message) if alone else None
        if isinstance(early, Ack) and not early.duplicate:
            recorded = early.sequence - 1  # it lies right behind its record
            self._writer.written(prepared)
        else:
            repeated = early is Unacknowledged.UNDER_WAY
            recorded = await self._writer.put(prepared, len(lines), repeated=repeated)
        self._answers.recorded(prepared, [*items, *told])
        await self.each(prepared, items, [] if early is None else [early], recorded)

    async def each(
        self,
        prepared: Prepared,
        items: Sequence[Judged],
        early: Sequence[Ack | Unacknowledged],
        recorded: int,
    ) -> None:
        """Publish each message by itself, after its record, which lies at ``recorded`` in the log.

        ``early``: what is known of each message already.
        """
        known = early or [Unacknowledged.NOT_STORED] * len(items)
        if len(items) == 1:  # for which a task would be one more turn to wait for
            await self._one(prepared, 0, items[0], known[0], recorded)
            return
        await asyncio.gather(
            *(
                self._one(prepared, position, judged, one, recorded)
                for position, (judged, one) in enumerate(zip(items, known, strict=True))
            )
        )

    async def _one(
        self, prepared: Prepared, position: int, judged: Judged, early: Ack | Unacknowledged, recorded: int
    ) -> None:
        message, call = judged.message, judged.call
        number = prepared.record.number
        reference = prepared.reference(position)
        try:
            if isinstance(early, Ack):
                ack = early
            else:
                fields = {**message.fields, headers.AUDIT: reference}
                ack = await publish_until_answered(
                    self._nc,
                    message.subject,
                    message.body,
                    fields,
                    repeated=early is Unacknowledged.UNDER_WAY,
                    before=self._writer.follow_connection,
                )
        except MaybeStored:
            return  # refused would be a guess: the sender repeats, and the projector finds out
        except Withheld as withheld:
            if not withheld.repeated and early is Unacknowledged.NOT_STORED:
                await self._not_stored(prepared, position, judged, refusals.log_full())
            return
        except JetStreamError as error:
            refusal = refusals.log_full()
            if subject_full(error):
                self._suspects.full(call.target)
                refusal = refusals.inbox_full(call.target)
            await self._not_stored(prepared, position, judged, refusal)
            return
        stored = await self._look(ack.sequence) if ack.duplicate else None
        if not ack.duplicate or (stored is not None and stored.headers.get(headers.AUDIT) == reference):
            self._writer.settle(number, position, Outcome.COMMITTED, ack.sequence)
            self._suspects.has_room(call.target)
            await self._answers.stored(judged, ack.sequence)
            return
        # Gone after a try of ours that was not answered: it may have been ours.
        tried = ack.repeated or early is Unacknowledged.MAYBE_STORED
        gone = stored is None and tried and ack.sequence > recorded
        told = await self._compare(judged, stored)
        if call.op == RELEASE:
            # One that an earlier attempt had stored: only this decision follows it any further.
            gone = gone or told.refusal is None
        elif gone and not (early is Unacknowledged.MAYBE_STORED and ack.sequence == recorded + 1 + position):
            # Not where a batch put it. Another decision of the same message may have stored it behind our
            # record: the projector finds out, which sees them all.
            await self._answers.tell(told)
            return
        self._writer.settle(
            number, position, Outcome.COMMITTED if gone else Outcome.DUPLICATE, ack.sequence if gone else 0
        )
        if not gone and not call.repeated:
            self._suspects.duplicate(call.sender)
        await self._answers.tell(told)

    async def _not_stored(self, prepared: Prepared, position: int, judged: Judged, refusal: Refusal) -> None:
        self._writer.settle(prepared.record.number, position, Outcome.NOT_COMMITTED)
        await self._answers.tell(self._refused(judged, refusal))

    async def _look(self, sequence: int) -> StoredMessage | None:
        return await until_answered(lambda: get_known(self._nc, subjects.INBOX_STREAM, sequence))

    async def _compare(self, judged: Judged, stored: StoredMessage | None) -> Judged:
        """Tell a repetition of a message the stream knows from another one under its id."""
        message, call = judged.message, judged.call
        if stored is not None and is_probe(stored.subject):
            return self._refused(judged, refusals.given_up())
        if call.errand is not None:  # nothing but this dead letter can have its dedup id
            return judged.repetition(same=True)
        if stored is not None:
            fields = stored.headers
            known: str | None = commitment(
                message.salt, fields.get(headers.TARGET, ""), fields.get(headers.TYPE, ""), stored.data
            )
        else:
            known = await self._recall(call.sender, call.message_id)
        if known is None:
            return self._refused(judged, refusals.cannot_compare())
        self._recent.add(message.dedup, known)
        told = judged.repetition(same=message.repeats(known))
        if told.refusal is not None:
            self._writer.carry([told.line])
        return told

    def _refused(self, judged: Judged, refusal: Refusal) -> Judged:
        """The same call refused, which the next record will say."""
        refused = judged.refused(refusal)
        self._writer.carry([refused.line])
        return refused
