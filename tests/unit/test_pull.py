"""When deliveries of a standing pull follow one another, and when they may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from sdk_worker import eventually

from mas_nats.pull import StandingPull
from mas_nats.transport import Incoming
from mas_nats.wire.headers import STATUS


class Connection:
    """Keeps who subscribes, and for how many messages it was asked. Nobody answers."""

    def __init__(self) -> None:
        self.receivers: list[Callable[[Incoming], None]] = []
        self.asked: list[int] = []
        self.at_drain: Callable[[], None] = lambda: None

    async def publish(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        self.asked.append(orjson.loads(body)["batch"])

    async def subscribe(self, subject: str, receive: Callable[[Incoming], None]) -> Connection:
        self.receivers.append(receive)
        return self

    async def drain(self) -> None:
        """Nothing is on its way."""
        self.at_drain()


class Pull:
    def __init__(self) -> None:
        self.connection = Connection()
        self.seen: list[str] = []
        connection: Any = self.connection
        self.pull = StandingPull(
            connection,
            "pull",
            lambda incoming: self.seen.append(incoming.reply),
            room=lambda: 10,
            busy=lambda: 0,
            anew=lambda: self.seen.append("anew"),
        )

    def deliver(self, name: str, *, by: int = -1) -> None:
        self.connection.receivers[by](Incoming("", name, {}, b"{}"))

    def told(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pull]:
    monkeypatch.setattr("mas_nats.pull._LAST_WORD", 0.0)
    pull = Pull()
    await pull.pull.start()
    assert pull.told() == ["anew"]
    yield pull
    await pull.pull.stop()


async def test_deliveries_of_one_pull_follow_one_another(one: Pull):
    one.deliver("1")
    one.deliver("2")
    assert one.told() == ["1", "2"]


async def test_what_comes_after_the_loss_of_a_connection_does_not_until_it_pulls_anew(one: Pull):
    one.deliver("1")
    one.pull.lost()
    one.deliver("2")  # left of the old connection, or asked for through it of a server that started anew
    one.deliver("3")
    assert one.told() == ["1", "anew", "2", "anew", "3", "anew"]
    await one.pull.restart()
    one.deliver("4")
    one.deliver("late", by=0)
    one.deliver("5")
    assert one.told() == ["anew", "4", "late", "anew", "5"]


async def test_nothing_is_asked_for_between_the_loss_of_a_connection_and_the_next(one: Pull):
    await eventually(lambda: one.connection.asked == [10])
    one.pull.lost()
    for number in range(10):
        one.deliver(str(number))
    await eventually(lambda: one.pull._look is None and not one.pull._asking.is_set())
    assert one.connection.asked == [10]
    await one.pull.restart()
    await eventually(lambda: one.connection.asked == [10, 1, 10])  # the one: its last word before it left


async def test_nor_when_the_next_is_lost_before_it_asked_anew(one: Pull):
    await eventually(lambda: one.connection.asked == [10])
    one.pull.lost()
    one.connection.at_drain = one.pull.lost
    await one.pull.restart()
    await eventually(lambda: one.pull._look is None and not one.pull._asking.is_set())
    assert one.connection.asked == [10, 1]
    one.connection.at_drain = lambda: None
    await one.pull.restart()
    await eventually(lambda: one.connection.asked == [10, 1, 1, 10])


@pytest.mark.parametrize(("status", "told"), [("409", ["anew"]), ("404", []), ("408", []), ("100", [])])
async def test_what_ends_a_request_badly_may_be_another_consumer(one: Pull, status: str, told: list[str]):
    one.connection.receivers[-1](Incoming("_INBOX.x.1", "", {STATUS: status}, b""))
    assert one.told() == told


async def test_it_asks_again_when_nothing_is_on_its_way_any_more(one: Pull):
    """Also where what came is not in hand: a message that was handled before, or cannot be read."""
    await eventually(lambda: one.connection.asked == [10])
    for number in range(9):
        one.deliver(str(number))
    assert not one.pull._asking.is_set()
    one.deliver("9")
    await asyncio.sleep(0)
    assert one.pull._asking.is_set()
    await eventually(lambda: one.connection.asked == [10, 10])


def test_who_says_that_there_is_room_when_the_loop_has_ended_is_not_heard() -> None:
    """As a handler does that nobody ended, when it is collected as garbage."""

    async def begin() -> StandingPull:
        one = Pull()
        await one.pull.start()
        return one.pull

    loop = asyncio.new_event_loop()
    pull = loop.run_until_complete(begin())
    pull.more()
    loop.run_until_complete(pull.stop())
    loop.close()
    pull.more()


async def test_it_looks_for_room_once_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Pull()
    looks: list[int] = []
    monkeypatch.setattr(one.pull, "_room", lambda: looks.append(1) or 10)
    for _ in range(5):
        one.pull.more()
    assert looks == []
    await asyncio.sleep(0)
    assert looks == [1]
    one.pull.more()
    await asyncio.sleep(0)
    assert looks == [1, 1]
