"""A program whose tasks begin at once: what does not have to wait has ended before its task is given."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

import pytest
from sdk_worker import eventually
from test_acknowledging import DENIED, Instance, failing, names

from mas_nats import Agent, AgentMessage
from mas_nats.acknowledging import LEAST
from mas_nats.testing import Limits, MemoryBroker

Factory = Callable[..., Any]


def at_once(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """As ``asyncio.eager_task_factory`` of Python 3.12 begins a task."""
    try:
        waits = work.send(None)
    except StopIteration as end:
        ended = loop.create_future()
        ended.set_result(end.value)
        return ended
    return asyncio.Task(rest(work, waits), loop=loop, **options)


@coroutine
def rest(work: Coroutine[Any, Any, Any], waits: Any) -> Generator[Any, Any, Any]:
    while True:
        try:
            given = yield waits
        except BaseException as error:
            step, argument = work.throw, error
        else:
            step, argument = work.send, given
        try:
            waits = step(argument)
        except StopIteration as end:
            return end.value


FACTORIES: list[Factory] = [at_once]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


@pytest.fixture(params=FACTORIES)
def eager(request: pytest.FixtureRequest) -> Callable[[], None]:
    return lambda: asyncio.get_running_loop().set_task_factory(request.param)


class Desk(Agent[Any]):
    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.got: list[int] = []

    async def on_message(self, message: AgentMessage) -> None:
        self.got.append(message.data["n"])
        if message.data["n"] % 5 == 0:
            await asyncio.sleep(0.01)


async def test_handlers_that_do_not_wait_leave_room_for_the_next(eager: Callable[[], None]):
    limits = Limits(in_flight=4)
    async with MemoryBroker(["a", "b"], allow={"a": ["b"]}, limits=limits) as broker:
        desk, asker = broker.agent(Desk, "b"), broker.agent(Agent, "a")
        await desk.start()
        await asker.start()
        eager()
        for n in range(20):
            await asker.send("b", "note", {"n": n})
        await eventually(lambda: len(desk.got) == 20)
        await broker.idle()
        inbox: Any = desk._inbox
        assert (inbox._in_hand(), broker.waiting("b")) == (0, 0)
        asyncio.get_running_loop().set_task_factory(None)
        await asker.stop()
        await desk.stop()


async def test_a_handler_that_stops_its_agent_at_once_does_not_wait_for_itself(eager: Callable[[], None]):
    class Leaving(Agent[Any]):
        async def on_message(self, message: AgentMessage) -> None:
            await self.stop()

    async with MemoryBroker(["a", "b"], allow={"a": ["b"]}) as broker:
        leaving, asker = broker.agent(Leaving, "b"), broker.agent(Agent, "a")
        await leaving.start()
        await asker.start()
        eager()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asker.send("b", "leave", {})
        await eventually(lambda: leaving._running is None and leaving._stopped is None)
        assert loop.time() - begun < 10
        assert not broker.waiting("b"), "it comes again, and would stop the next one"
        loop.set_task_factory(None)
        await asker.stop()


async def test_what_is_refused_at_once_does_not_end_the_gathering(eager: Callable[[], None]):
    one = Instance()
    one.wire.answer = failing(DENIED)
    eager()
    await one.handle(got := one.deliver(LEAST))
    await one.settled()
    assert (len(one.wire.together), one.wire.each) == (1, names(got))
    one.acks._not_before, one.wire.answer = 0.0, None
    await one.handle(one.deliver(LEAST))
    await one.settled()
    assert len(one.wire.together) == 2
