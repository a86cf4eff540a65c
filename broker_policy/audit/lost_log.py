"""What a lost log leaves behind in Redis: places in it, which are given away again in the one made instead.

A message of the new log must not be taken for the one that had its place before, nor a report about it. So
what still waited has no more to wait for: nobody can say whether it was handled just before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from broker_policy.audit import entry, log
from broker_policy.audit.draft import Draft
from broker_policy.audit.entry import Alarm
from broker_policy.audit.outcomes import add_without_decision, decode_pending, pairs_of
from broker_policy.audit.projection import decode_reports
from broker_policy.audit.record import Outcome, Way
from broker_policy.audit.settled import Settled
from broker_policy.audit.tail import Tail

AT_ONCE = 2000
"""Decisions settled in one append: few enough that Redis is not held up for long."""
_CLOCKS = 30_000
"""Milliseconds by which the clocks of two nodes may differ."""
_WAITED = "lost with the log"
_UNSETTLED = "the log was lost before its outcome was known"

_Lost = tuple[str, str, list[tuple[str, int]]]
"""The command that takes decisions away, its key, and for each its name there and its index."""


async def begin_anew(tail: Tail, end: log.End) -> None:
    """Say that the log was lost, settle what waited in it, and have the new one projected from its start.

    The last append does all that a few decisions need. Many are settled in appends before it: where one of
    them is the last, whoever comes next finds the log still below what is projected, and goes on.

    Raises: as ``Projector.project_once``.
    """
    before, layout = tail.head.sequence, tail.store.layout
    newest = max((state.seen for state in tail.writers.values()), default=0)
    if tail.head.made:
        made_anew = tail.head.made != end.made
    else:  # projected by a version that did not note it
        made_anew = not end.sequence or end.made + _CLOCKS > newest
    draft, settled, room = tail.draft(), Settled(), AT_ONCE
    async for command, key, lost in _waiting(tail, 0 if made_anew else end.sequence):
        for first in range(0, len(lost), AT_ONCE):
            some = lost[first : first + AT_ONCE]
            if len(some) > room:
                settled.write(draft, tail.now())
                await tail.append(draft)
                draft, settled, room = tail.draft(), Settled(), AT_ONCE
            reason = _WAITED if command == "ZREM" else _UNSETTLED
            settled.add_all((index for _, index in some), Outcome.UNKNOWN, reason=reason)
            draft.command_on_many(command, key, [name for name, _ in some])
            room -= len(some)
    draft.add(
        entry.alarm(draft.next_index, before, tail.now(), Alarm.LOG_RESTARTED, "", before, end.sequence)
    )
    settled.write(draft, tail.now())
    await _drop_reports(tail, draft, 0 if made_anew else end.sequence)
    if made_anew:
        draft.command("DEL", layout.opened, layout.batches)
    draft.sequence, draft.made = 0, end.made
    await tail.append(draft)


async def _waiting(tail: Tail, end: int) -> AsyncIterator[_Lost]:
    """What waited behind ``end``; where that is 0, also what was not settled.

    A log that was cut off, by a power cut, has what lies before its end; only one that was made anew has not.
    """
    layout = tail.store.layout
    agents, writers = await tail.pipeline([("SMEMBERS", layout.opened), ("SMEMBERS", layout.unsettled)])
    for agent in sorted(agents):
        key = layout.open(agent.decode())
        [members] = await tail.pipeline([("ZRANGEBYSCORE", key, f"({end}", "+inf")])
        yield "ZREM", key, [(member.decode(), int(member)) for member in members]
    for writer in sorted(writers) if not end else ():
        key = layout.pending(writer.decode())
        [raw] = await tail.pipeline([("HGETALL", key)])
        lone = [(name, one.index) for name, one in decode_pending(raw).items() if one.way is Way.LONE]
        yield "HDEL", key, lone  # an act has no place in the log: its worker may still say what became of it


async def _drop_reports(tail: Tail, draft: Draft, end: int) -> None:
    """Reports without a decision about places behind ``end`` find none any more."""
    early = tail.store.layout.early
    [raw] = await tail.pipeline([("HGETALL", early)])
    for field, value in pairs_of(raw):
        reports = decode_reports(value)
        if reports[0].sequence > end:
            add_without_decision(draft, reports, tail.now())
            draft.command("HDEL", early, field.decode())
