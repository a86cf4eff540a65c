"""Reading the history of a direct state while its agent goes on writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from broker_policy.audit.record import RecordKey
from broker_policy.audit.state_marks import STATE_GAP
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
    kept: list[Kept] = field(default_factory=list)
    _owed: float = 0.0

    def write(self, *, mediated: bool) -> None:
        previous = self.kept[-1].revision if self.kept else 0
        body = f"{previous + 1}".encode()
        mark = MARKER.mark("d", previous, body) if mediated else ""
        self.kept.append(Kept(previous + 1, 0, body, mark, previous if mediated else 0))
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
    lines = Lines(MARKER, Salt(), lambda agent: "")  # type: ignore[arg-type]
    followed = Followed("d", lines, lambda: None)
    followed.reached(Position(position))
    while not followed.complete:
        await followed.connect(bucket)
    return [(line.rule, line.message_id) for line in followed.due(10_000)[0]]


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


async def test_a_mark_on_another_revision_hides_nothing():
    """The agent copies what a worker wrote, with its mark, as a change of its own."""
    bucket = mediated(3)
    copied = bucket.kept[1]
    bucket.kept.append(Kept(4, 0, copied.body, copied.mark, copied.claimed))
    assert await read(bucket) == [("direct_state", "4")]
