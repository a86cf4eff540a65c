"""The changes of a direct state as a worker hears them: their audit lines are made when they are needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker_policy.audit.record import RecordKey
from broker_policy.direct_state import followed as module
from broker_policy.direct_state.changes import Change, Kept, Lines
from broker_policy.direct_state.followed import Followed
from broker_policy.direct_state.mark import Marker
from broker_policy.direct_state.positions import Position
from mas_nats.wire import headers
from tests.unit.test_direct_state_reading import Bucket, Salt


class Counting(Lines):
    """Knows of which revisions lines were made."""

    def __init__(self) -> None:
        marker = Marker("default", RecordKey(b"k" * 32))
        super().__init__(marker, Salt(), lambda agent: "")  # type: ignore[arg-type]
        self.made: list[int] = []

    def change(self, agent: str, kept: Kept, previous: int, fingerprint: str | None = None) -> Change:
        self.made.append(kept.revision)
        return super().change(agent, kept, previous, fingerprint)


def said(revision: int, previous: int, body: bytes = b"{}", mark: str = "") -> Any:
    fields = {
        headers.STORED_SEQUENCE: str(revision),
        headers.STORED_PREVIOUS: str(previous),
        headers.STORED_TIME: "2026-01-01T00:00:00Z",
        headers.STATE_MAC: mark,
    }
    return SimpleNamespace(headers=fields, data=body)


@pytest.fixture
async def following() -> Followed:
    """Follows a state of ten revisions, all audited."""
    bucket = Bucket()
    for _ in range(10):
        bucket.write(mediated=False)
    followed = Followed("d", Counting(), lambda: None)
    followed.reached(Position(10))
    await followed.connect(bucket)  # type: ignore[arg-type]
    assert followed.complete
    assert followed.lines.made == []  # type: ignore[attr-defined]
    return followed


def made(followed: Followed) -> list[int]:
    assert isinstance(followed.lines, Counting)
    return followed.lines.made


async def test_what_another_worker_has_audited_by_then_needs_no_line(following: Followed) -> None:
    for revision in (11, 12, 13):
        await following.hear(said(revision, revision - 1))
    assert made(following) == []
    assert not following.complete
    following.reached(Position(12, "another"))
    await following.connect(Bucket())  # type: ignore[arg-type]
    assert made(following) == [13]
    assert following.complete
    lines, reached = following.due(10)
    assert ([line.message_id for line in lines], reached) == (["13"], 13)


@pytest.mark.parametrize(("body", "mark"), [(b"x" * 60_000, ""), (b"", "x" * 60_000)], ids=["body", "mark"])
async def test_what_is_large_does_not_wait(following: Followed, body: bytes, mark: str) -> None:
    """A worker may be kept from looking, and must not fill its memory meanwhile with what an agent chose."""
    for revision in range(11, 16):
        await following.hear(said(revision, revision - 1, body, mark))
    assert made(following) == [11, 12, 13, 14]
    await following.connect(Bucket())  # type: ignore[arg-type]
    assert [line.message_id for line in following.due(10)[0]] == ["11", "12", "13", "14", "15"]


async def test_small_ones_do_not_wait_for_ever_either(following: Followed) -> None:
    for revision in range(11, 311):
        await following.hear(said(revision, revision - 1))
    assert 250 < len(made(following)) < 300


async def test_the_certificate_is_the_one_of_the_moment(following: Followed) -> None:
    following.lines.fingerprint = lambda agent: "earlier"
    await following.hear(said(11, 10))
    following.lines.fingerprint = lambda agent: "renewed"
    await following.hear(said(12, 11))
    await following.connect(Bucket())  # type: ignore[arg-type]
    assert [line.fingerprint for line in following.due(10)[0]] == ["earlier", "renewed"]


async def test_what_is_too_much_to_keep_is_read_again(
    following: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as few:
        few.setattr(module, "MOST_WAITING", 3)
        for revision in range(11, 16):
            await following.hear(said(revision, revision - 1))
    bucket = Bucket()
    for _ in range(16):  # one more than was heard
        bucket.write(mediated=False)
    await following.connect(bucket)  # type: ignore[arg-type]
    assert [line.message_id for line in following.due(10)[0]] == ["11", "12", "13", "14", "15", "16"]


async def test_only_the_worker_that_records_is_woken_by_a_change() -> None:
    woken: list[int] = []
    followed = Followed("d", Counting(), lambda: woken.append(followed.newest), me="this")
    await followed.hear(said(1, 0))
    assert woken == [1]  # nobody records yet
    followed.reached(Position(1, "another"))
    await followed.hear(said(2, 1))
    assert woken == [1]
    followed.reached(Position(2, "this"))
    await followed.hear(said(3, 2))
    assert woken == [1, 3]


async def test_the_newest_is_the_newest_that_was_heard(following: Followed) -> None:
    assert following.newest == 10
    await following.hear(said(11, 10))
    assert (following.newest, following.last) == (11, 10)
    await following.connect(Bucket())  # type: ignore[arg-type]
    assert (following.newest, following.last) == (11, 11)
    following.reached(Position(14))
    assert following.newest == 14


@pytest.mark.parametrize("newest", [3, 12], ids=["behind what is known", "past what is known"])
async def test_a_bucket_that_was_made_anew_is_read(following: Followed, newest: int) -> None:
    """It counts from one again, and what is heard of it looks like what is known."""
    bucket = Bucket()
    for _ in range(newest):
        bucket.write(mediated=False)
        await following.hear(said(bucket.kept[-1].revision, bucket.kept[-1].revision - 1))
    await following.connect(bucket)  # type: ignore[arg-type]
    assert [line.message_id for line in following.due(20)[0]] == [str(n) for n in range(1, newest + 1)]
