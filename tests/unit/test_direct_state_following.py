"""Who follows direct states while a part of what it needs is away: connection, bucket, beginning."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from broker_policy.audit.record import DecisionLine, RecordKind
from broker_policy.direct_state import follower as module
from broker_policy.direct_state.followed import Followed
from broker_policy.direct_state.follower import DirectStateAudit
from broker_policy.direct_state.positions import Position
from mas_nats.errors import Unavailable
from mas_nats.resilient import ResilientClient
from tests.unit.test_direct_state_hearing import Counting, said
from tests.unit.test_direct_state_reading import Bucket


class Log:
    """The writer of records, and what it wrote."""

    owes = False

    def __init__(self) -> None:
        self.written: list[str] = []

    async def write(self, kind: RecordKind, lines: Sequence[DecisionLine] = (), revision: int = 0) -> None:
        self.written += [line.message_id for line in lines]


class Kept:
    """The positions."""

    def __init__(self, **kept: Position) -> None:
        self.kept = kept

    async def all(self) -> dict[str, Position]:
        return dict(self.kept)

    async def get(self, agent: str) -> tuple[Position | None, int]:
        return self.kept[agent], 1

    async def write(self, agent: str, position: Position, entry: int) -> int:
        self.kept[agent] = position
        return entry + 1


class Away:
    """A connection that hears nothing at the moment."""

    reconnects = 0
    away = True

    async def catch_up(self) -> bool:
        return False

    async def close(self) -> None:
        return


class Heard(Away):
    """One that has heard everything."""

    away = False

    async def catch_up(self) -> bool:
        return True


async def refused() -> ResilientClient:
    raise Unavailable("nobody answers")


class Parts:
    """One worker that follows one agent, up to revision ten."""

    def __init__(self) -> None:
        self.nc = SimpleNamespace(subscribed=0)
        self.nc.subscribe = self._subscribe
        self.log, self.bucket, self.positions = Log(), Bucket(), Kept(d=Position(10, "me"))
        self.audit: Any = DirectStateAudit(
            self.nc,
            listen=refused,
            worker="me",
            writer=self.log,  # type: ignore[arg-type]
            lines=Counting(),
            table=lambda: None,
            revision=lambda: 1,
        )
        self.audit._positions, self.audit._history = self.positions, self.bucket
        for _ in range(10):
            self.bucket.write(mediated=False)

    async def _subscribe(self, subject: str, cb: object) -> None:
        self.nc.subscribed += 1

    async def follow(self, hearing: Away) -> Followed:
        followed = Followed("d", Counting(), lambda: None, me="me", entry=1)
        followed.reached(Position(10, "me"))
        await followed.connect(self.bucket)  # type: ignore[arg-type]
        self.audit._followed, self.audit._hearing, self.audit._started = {"d": followed}, hearing, True
        return followed

    async def write(self, followed: Followed | None = None) -> None:
        self.bucket.write(mediated=False)
        if followed is not None:
            newest = self.bucket.kept[-1].revision
            await followed.hear(said(newest, newest - 1))


@pytest.fixture
def parts() -> Parts:
    return Parts()


async def test_what_was_heard_is_recorded_at_the_end_though_nothing_is_heard_any_more(parts: Parts) -> None:
    followed = await parts.follow(Away())
    await parts.write(followed)
    parts.audit.close()
    await parts.audit.run()
    assert parts.log.written == ["11"]
    assert parts.positions.kept["d"] == Position(11)


async def test_while_nothing_is_heard_the_bucket_is_read(parts: Parts) -> None:
    await parts.follow(Away())
    for revision in (11, 12, 13):
        await parts.write()
        await parts.audit._round()
        assert parts.log.written[-1] == str(revision)


async def test_what_was_not_heard_is_found_at_the_next_look(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.follow(Heard())
    await parts.audit._round()
    await parts.write()
    await parts.audit._round()
    assert parts.log.written == [], "the control: nobody looked"
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.0)
    await parts.audit._round()
    assert parts.log.written == ["11"]


async def test_a_bucket_made_anew_is_noticed_while_its_agent_goes_on(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a worker that did not hear the first of it."""
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.0)
    followed = await parts.follow(Heard())
    parts.bucket.kept.clear()
    await parts.write()
    for _ in range(4):
        await parts.write(followed)
        await parts.audit._round()
    assert parts.log.written == ["1", "2", "3", "4", "5"]


async def test_a_beginning_that_fails_leaves_nothing_behind(parts: Parts) -> None:
    for _ in range(5):
        with pytest.raises(Unavailable):
            await parts.audit._round()
    assert parts.nc.subscribed == 1


async def test_where_nobody_is_followed_there_is_no_connection(parts: Parts) -> None:
    parts.positions.kept.clear()
    closed = []
    hearing = Heard()
    hearing.close = lambda: _done(closed)  # type: ignore[method-assign]
    parts.audit._hearing = hearing
    await parts.audit._round()
    assert closed == [True]


async def _done(closed: list[bool]) -> None:
    closed.append(True)


async def test_an_error_that_nobody_foresaw_ends_nothing() -> None:
    """The connection for calls stays, and so do the other namespaces of the worker."""

    async def broken() -> ResilientClient:
        raise AttributeError("nats-py")

    parts = Parts()
    parts.audit._hearing._connect = broken
    with pytest.raises(Unavailable):
        await parts.audit._round()
