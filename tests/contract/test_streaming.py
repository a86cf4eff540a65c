"""Streamed replies: in order, nothing missing, nothing twice; stopped when nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from mas_nats import (
    Agent,
    AgentMessage,
    InvalidMessage,
    PermissionDenied,
    ReplyWriter,
    RequestFailed,
    RequestTimeout,
    StreamCancelled,
)
from tests.contract.conftest import Recorder, Stage, eventually, now


class Line(BaseModel):
    number: int


class Writer(Agent[Any]):
    """Streams what it is asked for, and remembers how it ended."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.written = 0
        self.ended: list[str] = []

    @Agent.on("count")
    async def count(self, message: AgentMessage, data: dict[str, Any]) -> None:
        try:
            async with message.reply_stream() as out:
                for number in range(data["to"]):
                    await out.write(f"{number} ")
                    self.written += 1
        except StreamCancelled:
            self.ended.append("cancelled")
            raise
        else:
            self.ended.append("done")

    @Agent.on("forever")
    async def forever(self, message: AgentMessage, data: dict[str, Any]) -> None:
        try:
            async with message.reply_stream() as out:
                while True:
                    await out.write("x" * int(data.get("size", 1)))
                    self.written += 1
                    await asyncio.sleep(data.get("pause", 0))
        except StreamCancelled:
            self.ended.append("cancelled")
            raise

    @Agent.on("mixed")
    async def mixed(self, message: AgentMessage) -> None:
        async with message.reply_stream("words") as out:
            await out.write("grüß ")
            await out.write("dich")
            await out.write({"n": 1, "deep": {"x": [None]}})
            await out.write(Line(number=2))
            await out.write("")
            await out.write("end")

    @Agent.on("break")
    async def fail(self, message: AgentMessage, data: dict[str, Any]) -> None:
        async with message.reply_stream() as out:
            await out.write("so far")
            await self.started(data)
            raise ValueError("the secret 4111 1111 1111 1111")

    @Agent.on("slow-start")
    async def slow_start(self, message: AgentMessage) -> None:
        try:
            async with message.reply_stream() as out:
                self.written += 1
                await asyncio.Event().wait()
                await out.write("never")
        except StreamCancelled:
            self.ended.append("cancelled")
            raise

    @Agent.on("plain")
    async def plain(self, message: AgentMessage) -> None:
        await message.reply("answer", {"text": "whole"})

    async def started(self, data: dict[str, Any]) -> None:
        await asyncio.sleep(0.3)  # beyond the coalescing of frames, so that something is on its way


async def text_of(agent: Agent[Any], *args: Any, **options: Any) -> str:
    return "".join([str(chunk) async for chunk in agent.stream("b", *args, **options)])


def numbers(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


async def test_chunks_come_in_order_and_once(stage: Stage):
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    assert await text_of(a, "count", {"to": 5000}, timeout=30) == numbers(5000)
    await eventually(lambda: writer.ended == ["done"])
    await stage.all_acknowledged("b")


async def test_text_and_objects_keep_their_order(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    chunks = [chunk async for chunk in a.stream("b", "mixed", {}, timeout=10)]
    texts = [chunk for chunk in chunks if isinstance(chunk, str)]
    assert "".join(texts) == "grüß dichend"
    assert [chunk for chunk in chunks if not isinstance(chunk, str)] == [
        {"n": 1, "deep": {"x": [None]}},
        {"number": 2},
    ]
    assert chunks[-1] == "end"


async def test_the_first_chunk_does_not_wait_for_the_last(stage: Stage):
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    async with a.stream("b", "forever", {"pause": 0.05}, timeout=20) as chunks:
        assert await anext(chunks)
    await eventually(lambda: writer.ended)


async def test_many_streams_at_once_do_not_mix(stage: Stage):
    first, second = await stage.start(Agent, "a"), await stage.start(Agent, "a")
    for _ in range(2):
        await stage.start(Writer, "b")
    lengths = [50 * n for n in range(1, 9)]
    texts = await asyncio.gather(
        *(text_of(agent, "count", {"to": n}, timeout=30) for n in lengths for agent in (first, second))
    )
    assert texts == [numbers(n) for n in lengths for _ in range(2)]


@pytest.mark.parametrize("how", ["break", "aclose", "with", "cancel", "timeout"])
async def test_a_reader_that_leaves_stops_the_producer(stage: Stage, how: str):
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    options: dict[str, Any] = {"timeout": 1.0 if how == "timeout" else 30}

    async def read() -> None:
        stream = a.stream("b", "forever", {"pause": 0.01}, **options)
        if how == "with":
            async with stream as chunks:
                await anext(chunks)
        elif how == "aclose":
            await anext(stream)
            await stream.aclose()
        elif how == "break":
            del stream
            async for _ in a.stream("b", "forever", {"pause": 0.01}, **options):
                break
        else:
            async for _ in stream:
                pass

    reading = asyncio.create_task(read())
    await eventually(lambda: writer.written)
    if how == "cancel":
        await asyncio.sleep(0.05)
        reading.cancel()
    before = now()
    expected = {"cancel": asyncio.CancelledError, "timeout": RequestTimeout}.get(how)
    if expected:
        with pytest.raises(expected):
            await reading
    else:
        await reading
    await eventually(lambda: writer.ended == ["cancelled"])
    assert now() - before < 3
    await stage.all_acknowledged("b")
    assert await stage.namespace.dead_letter("b") is None


async def test_tasks_that_write_together_are_stopped_together(stage: Stage):
    ended: list[BaseException] = []

    async def work(message: AgentMessage) -> None:
        async def write(out: ReplyWriter, text: str) -> None:
            while True:
                await out.write(text)
                await asyncio.sleep(0.01)

        try:
            async with message.reply_stream() as out, asyncio.TaskGroup() as tasks:
                tasks.create_task(write(out, "a"))
                tasks.create_task(write(out, "b"))
        except BaseException as error:
            ended.append(error)
            raise

    a, b = await stage.start(Agent, "a"), await stage.start(Recorder, "b")
    b.work = work
    async with a.stream("b", "note", {}, timeout=30) as chunks:
        await anext(chunks)
    await eventually(lambda: ended)
    assert isinstance(ended[0], StreamCancelled)
    await stage.all_acknowledged("b")
    assert len(b.got) == 1


async def test_a_producer_that_has_written_nothing_yet_learns_of_it_too(stage: Stage):
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    reading = asyncio.create_task(text_of(a, "slow-start", {}, timeout=30))
    await eventually(lambda: writer.written)
    reading.cancel()
    before = now()
    await eventually(lambda: writer.ended == ["cancelled"])
    assert now() - before < 2
    await stage.all_acknowledged("b")


async def test_a_request_that_nobody_waits_for_any_more_is_stopped_when_it_is_begun(stage: Stage):
    a = await stage.start(Agent, "a")
    reading = asyncio.create_task(text_of(a, "forever", {"pause": 0.01}, timeout=60))
    await asyncio.sleep(0.3)  # so that it waits in the inbox; nobody is there to say so
    reading.cancel()
    writer = await stage.start(Writer, "b")
    await eventually(lambda: writer.ended == ["cancelled"])
    await stage.all_acknowledged("b")


async def test_a_failure_right_after_the_first_words_is_told(stage: Stage):
    """The frame with them is on its way when the handler fails."""

    async def work(message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write(f"attempt {message.attempt}")
            await asyncio.sleep(0)
            raise ValueError

    a, b = await stage.start(Agent, "a"), await stage.start(Recorder, "b")
    b.work = work
    with pytest.raises(RequestFailed, match="ValueError"):
        await text_of(a, "note", {}, timeout=20)
    assert len(b.got) == 1


async def test_a_reader_that_reads_nothing_loses_its_stream(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mas_nats.reply_stream.STALLED", 0.5)
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    async with a.stream("b", "forever", {"size": 4096}, timeout=60) as chunks:
        await anext(chunks)
        await eventually(lambda: writer.ended == ["cancelled"])
        with pytest.raises(RequestFailed, match="ReaderStalled"):
            async for _ in chunks:
                pass
    await stage.all_acknowledged("b")


async def test_an_exception_ends_the_stream_with_a_failure_that_quotes_nothing(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    chunks = a.stream("b", "break", {}, timeout=20)
    assert await anext(chunks) == "so far"
    with pytest.raises(RequestFailed, match=r"its handler failed \(ValueError\)") as caught:
        await anext(chunks)
    assert "4111" not in str(caught.value)
    await stage.all_acknowledged("b")
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts) == ("ValueError", 1)


async def test_before_anything_was_sent_a_failure_is_an_attempt_like_any_other(stage: Stage):
    class Flaky(Writer):
        @Agent.on("break")
        async def fail(self, message: AgentMessage, data: dict[str, Any]) -> None:
            async with message.reply_stream() as out:
                if message.attempt == 1:
                    raise ValueError("not yet")
                await out.write("now")

    a, _ = await stage.start(Agent, "a"), await stage.start(Flaky, "b")
    assert await text_of(a, "break", {}, timeout=20) == "now"


async def test_a_slow_reader_holds_the_producer_back(stage: Stage):
    a, writer = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    async with a.stream("b", "forever", {"size": 4096}, timeout=60) as chunks:
        await anext(chunks)
        last = -1
        while last != writer.written:  # until it stands still
            last = writer.written
            await asyncio.sleep(0.5)
        held = last
        assert held <= 64 + 16, "256 KiB on their way and 16 KiB before them, in pieces of 4 KiB"
        read = 0
        while read < 400_000:
            chunk = await anext(chunks)
            read += len(str(chunk))
        await eventually(lambda: writer.written > held)


async def test_a_request_to_a_handler_that_streams_gets_it_whole(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    reply = await a.request("b", "count", {"to": 300}, timeout=10)
    assert (reply.message_type, reply.data) == ("stream", {"text": numbers(300)})
    mixed = await a.request("b", "mixed", {}, timeout=10)
    assert mixed.message_type == "words"
    assert mixed.data["chunks"] == ["grüß dich", {"n": 1, "deep": {"x": [None]}}, {"number": 2}, "end"]


async def test_a_stream_from_a_handler_that_replies_once_is_one_object(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    chunks = [chunk async for chunk in a.stream("b", "plain", {}, timeout=10)]
    assert chunks == [{"text": "whole"}]


async def test_an_empty_stream_ends(stage: Stage):
    a, _ = await stage.start(Agent, "a"), await stage.start(Writer, "b")
    assert await text_of(a, "count", {"to": 0}, timeout=10) == ""
    assert (await a.request("b", "count", {"to": 0}, timeout=10)).data == {"text": ""}


async def test_what_cannot_be_written_is_refused_where_it_is_written(stage: Stage):
    errors: list[str] = []

    async def work(message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            for wrong in ("\ud800", {"x": object()}, 7, {"x": "y" * 1_000_000}):
                try:
                    await out.write(wrong)  # type: ignore[arg-type]
                except InvalidMessage as error:
                    errors.append(error.verdict.rule)
            await out.write("fine")

    a, b = await stage.start(Agent, "a"), await stage.start(Recorder, "b")
    b.work = work
    assert await text_of(a, "note", {}, timeout=20) == "fine"
    assert errors == ["text", "json", "json", "max_payload"]


async def test_a_message_that_was_sent_cannot_be_streamed_to(stage: Stage):
    a, b = await stage.recorders("a", "b")
    refused: list[BaseException] = []

    async def work(message: AgentMessage) -> None:
        try:
            message.reply_stream()
        except InvalidMessage as error:
            refused.append(error)

    b.work = work
    await a.send("b", "note", {})
    await eventually(lambda: refused)


async def test_a_stream_that_policy_does_not_allow(stage: Stage):
    d, _ = await stage.start(Agent, "d"), await stage.start(Writer, "b")
    with pytest.raises(PermissionDenied, match="no rule allows d to send to b"):
        await text_of(d, "count", {"to": 1})
    with pytest.raises(InvalidMessage):
        d.stream("b c", "count", {})


async def test_a_second_attempt_goes_on_where_the_first_was_when_it_says_the_same(stage: Stage):
    """The first instance is stopped in mid-stream; the words are the same, cut at other places."""
    a = await stage.start(Agent, "a")
    started = asyncio.Event()

    def work_in(size: int, stop_after: int) -> Any:
        async def work(message: AgentMessage) -> None:
            async with message.reply_stream() as out:
                text = numbers(2000)
                for place in range(0, len(text), size):
                    await out.write(text[place : place + size])
                    if place >= stop_after:
                        started.set()
                        await asyncio.Event().wait()

        return work

    first = await stage.start(Recorder, "b")
    first.work = work_in(7, 3000)
    reading = asyncio.create_task(text_of(a, "note", {}, timeout=30))
    await asyncio.wait_for(started.wait(), 10)
    await asyncio.sleep(0.3)
    second = stage.make(Recorder, "b")
    second.work = work_in(13, 10**6)
    await second.start()
    await first.stop(timeout=0)
    assert await reading == numbers(2000)
    assert [message.attempt for message in second.got] == [2]


async def test_a_second_attempt_that_says_something_else_is_an_error_not_a_splice(stage: Stage):
    a = await stage.start(Agent, "a")
    started = asyncio.Event()
    first, second = stage.make(Recorder, "b"), stage.make(Recorder, "b")

    async def begin(message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write("once upon a time")
            await asyncio.sleep(0.3)
            started.set()
            await asyncio.Event().wait()

    async def differ(message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            await out.write("it was a dark and stormy night")

    first.work, second.work = begin, differ
    await first.start()
    got: list[str] = []

    async def read() -> None:
        async for chunk in a.stream("b", "note", {}, timeout=30):
            got.append(str(chunk))

    reading = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), 10)
    await second.start()
    await first.stop(timeout=0)
    with pytest.raises(RequestFailed, match="began to answer a second time") as caught:
        await reading
    assert caught.value.decision == "ID_REUSED"
    assert got == ["once upon a time"]
    await stage.all_acknowledged("b")
    assert len(second.got) == 1, "a third attempt would not help"
    dead = await stage.namespace.dead_letter("b")
    assert dead is not None
    assert (dead.reason, dead.attempts) == ("IdReused", 2)
