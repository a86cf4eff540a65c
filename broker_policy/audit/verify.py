"""Verifying an audit in Redis: the chain against itself, its indexes, and signed checkpoints."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from broker_policy.audit.checkpoint import SignedCheckpoint
from broker_policy.audit.examination import Examination, Tally
from broker_policy.audit.findings import FindingKind, Report
from broker_policy.audit.key_history import CheckpointKeys
from broker_policy.audit.layout import BLOCK, SHARDS
from broker_policy.audit.past import past, reported
from broker_policy.audit.seal import Seal, trusted
from broker_policy.audit.segments import Segments
from broker_policy.audit.store import PAGE, Removed, Store, StoredEntry
from mas_nats.errors import MasError

OVERDUE = 120.0
"""Seconds after which a decision without an outcome is a finding."""
_LETTERS = 1 << 16
_LIST_PAGE = 10_000
_SHARD_PAGE = 512
_ROUNDS = 20


async def verify(
    store: Store,
    checkpoints: AsyncIterable[SignedCheckpoint] | None,
    keys: CheckpointKeys,
    *,
    overdue: float = OVERDUE,
    now: float | None = None,
    segments: Segments | None = None,
) -> Report:
    """Verify the whole audit of a namespace, also while it is being written.

    What left Redis is examined in ``segments``; without, the report names the segments that it lacks.

    ``checkpoints`` in order, signed by ``keys``; None: the chain is checked against itself alone, and
    somebody who rewrote all of Redis is not found. ``overdue`` in seconds.

    Raises:
        RemovedMeanwhile: see there.
        redis.exceptions.RedisError, OSError: Redis does not answer.

    """
    exam = Examination(store.layout.namespace, keys)
    walk = _Walk(exam, store, _none() if checkpoints is None else aiter(checkpoints))
    removed = await store.removed()
    seals = trusted(store.layout.namespace, await store.seals(), keys)
    await _walk_segments(walk, removed, seals, segments)
    await walk.to((await store.head()).index)
    await walk.finish_checkpoints()
    await _check_end(walk)
    await _check_outcomes(walk)
    await _check_lists(exam, store)
    await _check_shards(exam, store)
    exam.find_unsettled(int(((time.time() if now is None else now) - overdue) * 1000))
    exam.count_outcomes()
    if (await store.removed()).index != removed.index:
        raise RemovedMeanwhile("entries left Redis while they were being verified: verify again")
    return exam.report


class RemovedMeanwhile(MasError):
    """Somebody removed sealed entries during a verification."""


async def _walk_segments(walk: _Walk, removed: Removed, seals: list[Seal], segments: Segments | None) -> None:
    """Examine what is not in Redis any more; begin behind it where that cannot be."""
    exam = walk.exam
    exam.indexed_after = removed.index
    for part in past(removed, seals, segments, exam.report):
        if isinstance(part, StoredEntry):
            await walk.take(part)
        else:
            exam.flush()
            exam.begin(*part)
    walk.skip_to(removed.index)
    if segments is not None:
        for seal in seals:
            if seal.first > removed.index:  # in Redis still, but the file must be the sealed one
                with reported(exam.report, seal):
                    segments.require(seal)


@dataclass(slots=True)
class _Walk:
    """Reads the chain on, entries and checkpoints side by side."""

    exam: Examination
    store: Store
    checkpoints: AsyncIterator[SignedCheckpoint]
    at: int = 0
    _low: str = "-"
    _signed: SignedCheckpoint | None = field(default=None)
    _started: bool = False

    async def take(self, stored: StoredEntry) -> None:
        """The next entry, and the checkpoints that sign it."""
        if not self._started:
            self._started = True
            self._signed = await anext(self.checkpoints, None)
        self.exam.add(stored)
        while self._signed is not None and self._signed.checkpoint.index <= stored.index:
            self.exam.checkpoint(self._signed)
            self._signed = await anext(self.checkpoints, None)

    def skip_to(self, index: int) -> None:
        """Go on in Redis after entry ``index``."""
        if index:
            self._low, self.at = f"({index}-0", index

    async def to(self, index: int) -> None:
        """Read on until entry ``index`` or the end of the chain."""
        if not self._started:
            self._started = True
            self._signed = await anext(self.checkpoints, None)
        while self.at < index:
            page = await self.store.between(self._low, "+", PAGE)
            if not page:
                break
            for stored in page:
                await self.take(stored)
            self._low, self.at = f"({page[-1].identifier}", page[-1].index
        self.exam.flush()

    async def finish_checkpoints(self) -> None:
        """Check the checkpoints beyond what was read; the chain may have grown meanwhile."""
        while self._signed is not None:
            index = self._signed.checkpoint.index
            if index > self.at and (head := await self.store.head()).index >= index:
                await self.to(head.index)
            if self._signed is not None and self._signed.checkpoint.index == index:
                self.exam.checkpoint(self._signed)
                self._signed = await anext(self.checkpoints, None)


async def _none() -> AsyncIterator[SignedCheckpoint]:
    nothing: tuple[SignedCheckpoint, ...] = ()
    for signed in nothing:
        yield signed


async def _check_end(walk: _Walk) -> None:
    """Compare head, last entry and what Redis remembers of the last entry it ever had."""
    end = await walk.store.end()
    await walk.to(end.head.index)
    exam = walk.exam
    if end.highest > end.last:
        text = f"entries {end.last + 1} to {end.highest} were there and are gone"
        exam.report.add(FindingKind.CUT, end.last + 1, text, last=end.highest)
    if end.last != end.head.index or exam.index == end.head.index:
        exam.end_at(end.head.index, end.head.hash.hex(), end.last)


# -- what is derived from the chain ---------------------------------------------------------------------
async def _check_outcomes(walk: _Walk) -> None:
    """Compare the stored outcomes; those that changed while we read are looked at again."""
    exam = walk.exam
    suspects = await _differing(walk, None)
    for _ in range(_ROUNDS):
        if not suspects:
            return
        await walk.to((await walk.store.head()).index)
        again = await _differing(walk, suspects)
        if again == suspects and (await walk.store.head()).index <= walk.at:
            break
        suspects = again
    for index in suspects:
        exam.report.add(FindingKind.OUTCOME, index, f"the stored outcome of {index} is not that of the chain")


async def _differing(walk: _Walk, suspects: list[int] | None) -> list[int]:
    letters = walk.exam.letters
    if suspects is not None:
        found = await walk.store.outcomes_at(suspects)
        return [
            index
            for index, letter in zip(suspects, found, strict=True)
            if letter.encode() != letters[index : index + 1]
        ]
    differing: list[int] = []
    for first in range(0, len(letters), _LETTERS):
        ours = bytes(letters[first : first + _LETTERS])
        place = first % BLOCK
        key = walk.store.layout.outcomes(first // BLOCK)
        theirs: bytes = await walk.store.redis.getrange(key, place, place + len(ours) - 1)
        if theirs != ours:
            theirs = theirs.ljust(len(ours), b"\0")
            differing += [first + i for i, letter in enumerate(ours) if letter and letter != theirs[i]]
    return differing


async def _check_lists(exam: Examination, store: Store) -> None:
    """Compare what the indexes list, and in what order: questions find their place in them by bisection.

    Numbers beyond what was examined are of entries that came meanwhile, but out of order they mislead too.
    """
    for name, tally in exam.lists.items():
        found = Tally()
        first, before, ascending = 0, 0, True
        while True:
            page = await store.redis.lrange(store.layout.by(name), first, first + _LIST_PAGE - 1)
            for raw in page:
                index = _number(raw)
                ascending = ascending and index > before
                before = index
                if index <= exam.index:
                    found.add(index)
            first += _LIST_PAGE
            if len(page) < _LIST_PAGE:
                break
        if not ascending:
            text = f"index {name} is not in the order of the chain: questions miss what it lists"
            exam.report.add(FindingKind.INDEX, 0, text)
        if found != tally:
            text = f"index {name} lists {found.count} entries, the chain has {tally.count}, or lists others"
            exam.report.add(FindingKind.INDEX, 0, text)


async def _check_shards(exam: Examination, store: Store) -> None:
    for first in range(0, SHARDS, _SHARD_PAGE):
        page = range(first, min(first + _SHARD_PAGE, SHARDS))
        shards = [shard for shard in page if shard in exam.shards]
        # Most are missing where little was written: one question for all that should be.
        missing = [store.layout.shard(shard) for shard in page if shard not in exam.shards]
        if missing and await store.redis.exists(*missing):
            shards = list(page)
        async with store.redis.pipeline(transaction=False) as pipe:
            for shard in shards:
                pipe.hgetall(store.layout.shard(shard))
            rows = await pipe.execute()
        for shard, row in zip(shards, rows, strict=True):
            found = Tally()
            for raw, fragment in row.items():
                if (index := _number(raw)) <= exam.index:
                    found.add(index, fragment.decode(errors="replace"))
            if found != exam.shards.get(shard, Tally()):
                text = f"the message ids of shard {shard:x} are not those of the chain"
                exam.report.add(FindingKind.INDEX, 0, text)


def _number(raw: bytes) -> int:
    return int(raw) if raw.isdigit() else 0
