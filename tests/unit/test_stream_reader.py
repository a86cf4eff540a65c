"""The reader of a streamed reply: whatever comes in whatever order, what is read is in order, once, whole."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mas_nats.errors import RequestFailed
from mas_nats.stream import Asked, Reader
from mas_nats.transport import Incoming, NoAnswer
from mas_nats.wire import headers
from mas_nats.wire.frames import WINDOW_FRAMES, FrameMark

RUN = "a" * 16


def frame(number: int, count: int, *, run: str = RUN, size: int = 1) -> Incoming:
    fields = {headers.MESSAGE_ID: "m", headers.FRAME: str(FrameMark(run, 1, "m" * 43))}
    fields[headers.INSTANCE] = "f" * 20
    if number == count - 1:
        fields[headers.END] = "1"
    return Incoming("", "", fields, orjson.dumps({"chunks": [f"{number} " * size]}))


class Stored:
    """The reply stream as a reader sees it: all frames, behind a connection that fails now and then."""

    def __init__(self, count: int, failing: int = 0) -> None:
        self.count = count
        self.failing = failing
        self.gone: set[int] = set()
        self.told: list[int] = []

    async def fetch(self, number: int, left: float) -> Incoming:
        await asyncio.sleep(0)
        if self.failing:
            self.failing -= 1
            raise NoAnswer
        if number >= self.count or number in self.gone:
            return Incoming("", "", {headers.STATUS: "404"}, b"")
        return frame(number, self.count)

    def reader(self, timeout: float = 20) -> Reader:
        async def send() -> None:
            return None

        loop = asyncio.get_running_loop()
        asked = Asked("m", "b", "tell", timeout, loop.time() + timeout, send)
        return Reader(
            asked, fetch=self.fetch, tell=lambda _, count: self.told.append(count), closed=lambda _: None
        )


async def read(reader: Reader) -> str:
    said = ""
    while (chunks := await reader.next()) is not None:
        said += "".join(map(str, chunks))
        reader.consumed()
    return said


def whole(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mas_nats.stream._PAUSE", 0.001)
    monkeypatch.setattr("mas_nats.stream.IDLE", 0.005)
    monkeypatch.setattr("mas_nats.stream.LOST_AFTER", 0.05)


@given(
    st.integers(1, 12).flatmap(
        lambda count: st.tuples(st.just(count), st.lists(st.integers(0, count - 1), max_size=30))
    ),
    st.integers(0, 3),
)
def test_any_order_any_loss_any_repetition(given_frames: tuple[int, list[int]], failing: int):
    count, arrivals = given_frames

    async def run() -> str:
        reader = Stored(count, failing).reader()
        reading = asyncio.create_task(read(reader))
        for number in arrivals:
            reader.receive(number, frame(number, count))
            await asyncio.sleep(0)
        return await reading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mas_nats.stream._PAUSE", 0.0)
        patch.setattr("mas_nats.stream.IDLE", 0.002)
        assert asyncio.run(run()) == whole(count)


async def test_a_frame_that_is_nowhere_is_an_error_not_a_hole():
    stored = Stored(5)
    stored.gone = {2}
    reader = stored.reader()
    for number in (0, 1, 3, 4):
        reader.receive(number, frame(number, 5))
    with pytest.raises(RequestFailed, match="frame 2 from b was lost") as caught:
        await read(reader)
    assert caught.value.decision == "UNAVAILABLE"


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_frames_of_another_course_are_an_error(number: int):
    reader = Stored(9).reader()
    reader.receive(0, frame(0, 9))
    assert await reader.next()
    reader.receive(1, frame(1, 9))
    assert await reader.next()
    reader.receive(number, frame(number, 9, run="b" * 16))
    with pytest.raises(RequestFailed, match="a second time"):
        await read(reader)


async def test_a_failure_comes_after_what_was_said_before_it():
    reader = Stored(0).reader()
    told = {headers.MESSAGE_ID: "m", headers.FAILURE: "DEAD"}
    reader.receive(2, Incoming("", "", told, b'{"reason":"tired"}'))
    reader.receive(1, frame(1, 9))
    reader.receive(0, frame(0, 9))
    assert await reader.next() == ["0 "]
    assert await reader.next() == ["1 "]
    with pytest.raises(RequestFailed, match="tired"):
        await reader.next()


async def test_a_flood_is_not_kept_and_not_lost():
    count = 5 * WINDOW_FRAMES
    reader = Stored(count).reader()
    for number in range(count):
        reader.receive(number, frame(number, count))
    assert len(reader._frames) <= 2 * WINDOW_FRAMES
    assert await read(reader) == whole(count)


async def test_large_frames_are_not_kept_beyond_their_bytes():
    reader = Stored(20).reader()
    for number in range(20):
        reader.receive(number, frame(number, 20, size=100_000))
    assert reader._size <= 1 << 20


async def test_it_says_how_far_it_has_read():
    stored = Stored(50)
    reader = stored.reader()
    for number in range(50):
        reader.receive(number, frame(number, 50))
    await read(reader)
    assert stored.told[:3] == [16, 32, 48]


async def test_a_reply_that_is_not_streamed_is_one_object():
    reader = Stored(0).reader()
    reader.receive(0, Incoming("", "", {headers.MESSAGE_ID: "m"}, b'{"text":"whole"}'))
    got: list[Any] = []
    while (chunks := await reader.next()) is not None:
        got += chunks
    assert got == [{"text": "whole"}]
