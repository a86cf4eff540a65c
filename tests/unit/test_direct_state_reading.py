"""Reading the history of a direct state while its agent goes on writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from broker_policy.audit.record import DecisionLine, RecordKey
from broker_policy.audit.state_marks import STATE_GAP, StateMark
from broker_policy.direct_state.changes import Kept, Lines
from broker_policy.direct_state.followed import Followed
from broker_policy.direct_state.mark import Marker
from broker_policy.direct_state.positions import Position
from broker_policy.tenants.streams import STATE_HISTORY

MARKER = Marker("default", RecordKey(b"k" * 32))


class Salt:
    def salt(self, sender: str, message_id: str) -> bytes:
        return b"s" * 16


@dataclass
class Bucket:
    """A history of 64; after each answer the agent writes ``pace`` revisions, until it reaches ``end``."""

    pace: float = 0.0
    end: int = 0
    step: int = 1  # between two revisions of this agent: the others' count too
    clock: int = 0  # unix milliseconds
    kept: list[Kept] = field(default_factory=list)
    _owed: float = 0.0

    def write(self, *, mediated: bool) -> None:
        previous = self.kept[-1].revision if self.kept else 0
        revision = previous + self.step
        body = f"{revision}".encode()
        self.clock += 1
        mark = MARKER.mark("d", previous, body) if mediated else ""
        self.kept.append(Kept(revision, self.clock, body, mark, previous if mediated else 0))
        del self.kept[:-STATE_HISTORY]

    async def first(self, agent: str, revision: int = 1) -> Kept | None:
        found = next((each for each in self.kept if each.revision >= revision), None)
        self._owed += self.pace
        while self._owed >= 1 and self.kept[-1].revision < self.end:
            self._owed -= 1
            self.write(mediated=False)
        return found

    async def newest(self, agent: str) -> int:
        return self.kept[-1].revision


async def read(bucket: Any, position: int = 0) -> list[tuple[str, str]]:
    """What a worker that begins to follow would enter: rule and id."""
    return [(line.rule, line.message_id) for line in await lines_of(bucket, position)]


async def lines_of(bucket: Any, position: int = 0) -> list[DecisionLine]:
    lines = Lines(MARKER, Salt(), lambda agent: "")  # type: ignore[arg-type]
    followed = Followed("d", lines, lambda: None)
    followed.reached(Position(position))
    while not followed.complete:
        await followed.connect(bucket)
    return followed.due(10_000)[0]


def mediated(revisions: int, **options: float) -> Bucket:
    bucket = Bucket(**options)  # type: ignore[arg-type]
    for _ in range(revisions):
        bucket.write(mediated=True)
    return bucket


@pytest.mark.parametrize("pace", [0.1, 0.3])
async def test_what_workers_wrote_is_not_entered_again(pace: float):
    """The agent writes while its mediated history is read: the oldest of it leave meanwhile."""
    found = await read(mediated(140, pace=pace, end=145))
    assert [each for _, each in found] == ["141", "142", "143", "144", "145"]
    assert STATE_GAP not in [rule for rule, _ in found]


async def test_what_may_be_lost_is_named():
    """The control: it writes faster than the worker reads, so nobody saw all of it."""
    found = await read(mediated(140, pace=3.0, end=600))
    assert STATE_GAP in [rule for rule, _ in found]
    assert ("direct_state", "600") in found


async def test_a_gap_spans_what_was_read_without_certainty():
    bucket = Bucket()
    for _ in range(100):
        bucket.write(mediated=False)
    bucket.pace, bucket.end = 3.0, 130
    found = await read(bucket, position=40)
    gaps = [each for rule, each in found if rule == STATE_GAP]
    entered = [int(each) for rule, each in found if rule != STATE_GAP]
    assert gaps
    assert entered == sorted(set(entered))
    assert entered[-1] == 130
    spans = [tuple(map(int, each.split("-"))) for each in gaps]
    known = set(entered) | {each for low, high in spans for each in range(low + 1, high)}
    assert known >= set(range(41, 131))


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("pace", [0.3, 0.6, 0.9, 1.0, 1.7, 3.0])
async def test_what_may_be_lost_between_two_is_named_in_the_chain(pace: float, step: int):
    """Whatever was read in between: what the chain covers by then, it does not take."""
    bucket = Bucket(step=step)
    for _ in range(100):
        bucket.write(mediated=False)
    bucket.pace, bucket.end = pace, 130 * step
    entered, spans = chain(await lines_of(bucket, position=40 * step), StateMark(40 * step, 0))
    assert entered == sorted(set(entered))
    assert entered[-1] >= 100 * step
    named = {each for low, high in spans for each in range(low + 1, high)}
    assert named | set(entered) >= set(range(41 * step, entered[-1] + 1, step))
    assert step > 1 or not named & set(entered), "between neighbours nothing can be"


def chain(lines: list[DecisionLine], mark: StateMark) -> tuple[list[int], list[tuple[int, int]]]:
    """What of ``lines`` a projector enters behind ``mark``: revisions, and between which there are gaps."""
    entered: list[int] = []
    spans: list[tuple[int, int]] = []
    for line in lines:
        state = StateMark.of(line)
        assert state is not None
        if mark.covers(state):
            continue
        mark = mark.then(state)
        if line.rule == STATE_GAP:
            low, high = map(int, line.message_id.split("-"))
            spans.append((low, high))
        else:
            entered.append(int(line.message_id))
    return entered, spans


async def test_a_gap_of_a_bucket_that_was_made_anew_is_named_in_the_chain():
    """It counts from one again; the chain has higher numbers, of earlier."""
    bucket = Bucket(clock=1_000)
    for _ in range(100):
        bucket.write(mediated=False)
    entered, spans = chain(await lines_of(bucket), StateMark(5_000, 900))
    assert (entered[0], entered[-1], spans) == (37, 100, [(0, 37)])


async def test_a_mark_on_another_revision_hides_nothing():
    """The agent copies what a worker wrote, with its mark, as a change of its own."""
    bucket = mediated(3)
    copied = bucket.kept[1]
    bucket.kept.append(Kept(4, 0, copied.body, copied.mark, copied.claimed))
    assert await read(bucket) == [("direct_state", "4")]
