"""Agents that are stopped twice, in a handler or half way, and calls that end before they are answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from mas_nats import (
    Agent,
    AgentMessage,
    IdentityRefused,
    InvalidMessage,
    OutcomeUnknown,
    RequestFailed,
    Unavailable,
)
from mas_nats.testing import MemoryBroker


class Worker(Agent[Any]):
    """Does with each message what it is told to."""

    def __init__(self, agent_id: str, **options: Any) -> None:
        super().__init__(agent_id, **options)
        self.work: Callable[[AgentMessage], Awaitable[object]] | None = None
        self.handled: list[int] = []  # attempts
        self.ended: list[int] = []  # how many had been handled by each stop

    async def on_message(self, message: AgentMessage) -> None:
        if self.work is not None:
            await self.work(message)
        self.handled.append(message.attempt)

    async def on_stop(self) -> None:
        self.ended.append(len(self.handled))


def broker() -> MemoryBroker:
    return MemoryBroker(["a", "b"], allow={"a": ["*"], "b": ["*"]})


def slowly(seconds: float) -> Callable[[AgentMessage], Awaitable[object]]:
    return lambda _: asyncio.sleep(seconds)


async def answer(message: AgentMessage) -> None:
    await asyncio.sleep(2)
    await message.reply("answer", {"ok": 1})


class Outcome(BaseException):
    """As the ``pytest.fail`` of a handler raises it."""


async def test_whatever_a_handler_raises_is_a_failed_attempt():
    async with broker() as up, up.agent(Worker, "a") as sender, up.agent(Worker, "b") as agent:

        async def fail(_: AgentMessage) -> None:
            raise Outcome("no")

        agent.work = fail
        await sender.send("b", "work", {})
        await up.idle()
        await up.advance(60)
        assert [(dead.reason, dead.attempts) for dead in up.dead_letters("b")] == [("EXHAUSTED", 5)]


@pytest.mark.parametrize("timeout", [0, -1, 3601, float("nan")])
async def test_a_timeout_that_cannot_be_waited_for_is_named(timeout: float):
    async with broker() as up, up.agent(Worker, "a") as sender:
        with pytest.raises(InvalidMessage, match=f"more than 0 and at most 3600 s, not {timeout:g} s"):
            await sender.request("b", "ask", {}, timeout=timeout)


async def test_one_name_is_not_a_list_of_letters():
    async with broker() as up, up.agent(Worker, "a") as asker:
        with pytest.raises(TypeError, match="list of names, not 'qa'"):
            await asker.discover("qa")


async def test_who_announces_too_much_is_told_to_announce_less():
    async with broker() as up:
        with pytest.raises(InvalidMessage, match=r"exceed 8192 bytes\. Announce less"):
            await up.agent(Worker, "a", metadata={"text": "x" * 10_000}).start()


# -- stopping --------------------------------------------------------------------------------------------
async def test_who_stops_while_another_does_waits_for_it():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Worker, "b")
        agent.work = slowly(5)
        await agent.start()
        await sender.send("b", "work", {})
        await asyncio.sleep(1)
        await asyncio.gather(agent.stop(), agent.stop())
        assert agent.ended == [1], "once, and not before the handler had finished"
        await up.advance(60)
        assert not up.waiting("b")


def connected(up: MemoryBroker, agent_id: str) -> list[object]:
    return [peer for peer in up._running.connections if peer.agent == agent_id]


class Hooked(Agent[Any]):
    """Does in its hooks what it is told to."""

    def __init__(self, agent_id: str, **options: Any) -> None:
        super().__init__(agent_id, **options)
        self.at_start: Callable[[], Awaitable[object]] | None = None
        self.at_stop: Callable[[], Awaitable[object]] | None = None
        self.steps: list[str] = []

    async def on_start(self) -> None:
        self.steps.append("start")
        if self.at_start is not None:
            await self.at_start()

    async def on_stop(self) -> None:
        self.steps.append("stop")
        if self.at_stop is not None:
            await self.at_stop()


async def test_who_starts_while_another_does_waits_for_it():
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        agent.at_start = lambda: asyncio.sleep(1)
        await asyncio.gather(agent.start(), agent.start(), agent.start())
        assert agent.steps == ["start"]
        await agent.stop()
        await up.advance(1)
        assert not connected(up, "b")


async def test_who_waited_for_a_start_that_failed_tries_it():
    async with broker() as up:
        agent = up.agent(Hooked, "b")

        async def fail_once() -> None:
            await asyncio.sleep(1)
            if len(agent.steps) == 1:
                raise ValueError("not yet")

        agent.at_start = fail_once
        first, second = await asyncio.gather(agent.start(), agent.start(), return_exceptions=True)
        assert (type(first), second) == (ValueError, None)
        assert await agent.discover() == []
        await agent.stop()


async def test_an_agent_that_stops_itself_while_it_starts_is_stopped_when_it_has_started():
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        agent.at_start = agent.stop
        async with asyncio.timeout(10):
            await agent.run_until_stopped()
        assert agent.steps == ["start", "stop"]
        with pytest.raises(Unavailable, match="is not started"):
            await agent.discover()


@pytest.mark.parametrize("after", [0, 1])
async def test_who_starts_an_agent_that_is_stopped_meanwhile_is_told(after: float):
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        agent.at_start = lambda: asyncio.sleep(2)
        starting = asyncio.ensure_future(agent.start())
        await asyncio.sleep(after)
        await agent.stop()
        with pytest.raises(Unavailable, match="stopped while it was being started"):
            await starting
        assert not connected(up, "b")
        agent.at_start = None
        async with agent:
            assert await agent.discover() == []


async def test_an_agent_that_is_being_stopped_begins_to_handle_nothing():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Hooked, "b")
        agent.at_start = lambda: asyncio.sleep(2)
        agent.at_stop = lambda: asyncio.sleep(2)
        starting = asyncio.ensure_future(agent.start())
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(agent.stop())
        await asyncio.sleep(1.5)
        assert agent.steps == ["start", "stop"]
        await sender.send("b", "work", {})
        await stopping
        with pytest.raises(Unavailable, match="stopped while it was being started"):
            await starting
        assert agent._inbox is None
        assert (up.waiting("b"), up.dead_letters("b")) == (1, []), "it waits for the next one"


async def test_who_waits_for_the_end_before_the_start_is_told():
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        waiting = asyncio.ensure_future(agent.finished())
        await asyncio.sleep(0)
        async with agent:
            agent.finish()
            async with asyncio.timeout(10):
                await waiting
        assert agent.steps == ["start", "stop"]


async def test_an_agent_may_be_told_to_stop_while_it_stops_itself():
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        agent.at_stop = agent.stop
        await agent.start()
        async with asyncio.timeout(10):
            await agent.stop()
        assert agent.steps == ["start", "stop"]


async def test_an_agent_is_not_started_where_it_is_stopped():
    async with broker() as up:
        agent = up.agent(Hooked, "b")
        agent.at_stop = agent.start
        await agent.start()
        with pytest.raises(Unavailable, match="is being stopped"):
            async with asyncio.timeout(10):
                await agent.stop()
        await agent.start()
        agent.at_stop = None
        await agent.stop()


async def test_a_program_ends_when_its_agent_is_stopped():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Worker, "b")
        agent.work = lambda _: agent.stop()
        running = asyncio.ensure_future(agent.run_until_stopped())
        await up.advance(1)
        await sender.send("b", "shutdown", {})
        async with asyncio.timeout(10):
            await running
        assert agent.ended == [1]


def test_an_agent_runs_in_a_thread():
    ended = []

    async def run() -> None:
        async with broker() as up:
            agent = up.agent(Hooked, "b")
            agent.at_start = lambda: asyncio.sleep(0, agent.finish())
            await agent.run_until_stopped()
            ended.extend(agent.steps)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    thread.join(10)
    assert ended == ["start", "stop"]


async def test_a_handler_that_stops_its_agent_is_acknowledged():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Worker, "b")

        async def stop(_: AgentMessage) -> None:
            await agent.stop()
            await agent.stop()

        agent.work = stop
        await agent.start()
        await sender.send("b", "shutdown", {})
        async with asyncio.timeout(10):
            while not agent.ended:
                await asyncio.sleep(0.1)
        assert agent.ended == [1]
        await up.advance(60)
        assert not up.waiting("b"), "it comes again, and would stop the next one"
        with pytest.raises(Unavailable):
            await agent.send("a", "work", {})


async def test_a_handler_that_stops_an_agent_that_is_being_stopped_does_not_wait_for_itself():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Worker, "b")

        async def stop(_: AgentMessage) -> None:
            await asyncio.sleep(2)
            await agent.stop()

        agent.work = stop
        await agent.start()
        await sender.send("b", "shutdown", {})
        await asyncio.sleep(1)
        await asyncio.wait_for(agent.stop(timeout=10), 5)
        assert agent.ended == [1]


async def test_a_stop_that_is_cancelled_leaves_nothing_running():
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent, other = up.agent(Worker, "b"), up.agent(Worker, "b")
        agent.work = slowly(600)
        await agent.start()
        await sender.send("b", "work", {})
        await asyncio.sleep(1)
        assert agent._inbox is not None
        keepalive = agent._inbox._keepalive
        stopped: list[bool] = []
        end = keepalive.stop

        async def stop() -> None:
            stopped.append(True)
            await end()

        keepalive.stop = stop  # type: ignore[method-assign]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.stop(), 5)
        assert stopped
        async with other:
            await asyncio.sleep(1)
            assert other.handled == [2], "given back at once, and handled by the next"
        assert not agent.handled


async def test_an_agent_is_stopped_when_its_last_word_was_said():
    async with broker() as up:
        agent = up.agent(Worker, "a")
        await agent.start()
        with up.no_workers():
            first = asyncio.create_task(agent.stop())
            await asyncio.sleep(0.1)
            assert agent._running is None, "it says bye"
            await agent.stop()
            assert first.done()
            again = asyncio.create_task(agent.start(timeout=60))
        await again
        await agent.send("b", "work", {})
        await agent.stop()
        with pytest.raises(Unavailable):
            await agent.send("b", "work", {})


async def test_a_stop_that_is_cancelled_while_it_says_bye_disconnects():
    async with broker() as up:
        agent = up.agent(Worker, "a")
        await agent.start()
        with up.no_workers(), pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.stop(), 0.5)
        assert not up._running.connections


# -- requests --------------------------------------------------------------------------------------------
async def test_who_waits_for_a_reply_is_told_when_its_agent_stops():
    async with broker() as up:
        agent = up.agent(Worker, "a")
        await agent.start()
        asking = asyncio.create_task(agent.request("b", "ask", {}, id="x", timeout=600))
        await asyncio.sleep(1)
        await agent.stop()
        with pytest.raises(OutcomeUnknown, match="stopped") as told:  # it may be handled all the same
            await asyncio.wait_for(asking, 5)
        assert told.value.message_id == "x"


async def test_a_request_that_is_repeated_after_its_reply_gets_it():
    async with broker() as up, up.agent(Worker, "b") as target, up.agent(Worker, "a") as agent:
        target.work = answer
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.request("b", "ask", {}, id="x", timeout=60), 1)
        await asyncio.sleep(3)
        reply = await asyncio.wait_for(agent.request("b", "ask", {}, id="x", timeout=60), 5)
        assert reply.data == {"ok": 1}
        assert target.handled == [1]


async def test_a_missed_reply_is_looked_up_until_that_is_answered():
    async with broker() as up, up.agent(Worker, "b") as target, up.agent(Worker, "a") as agent:
        target.work = answer
        asking = asyncio.create_task(agent.request("b", "ask", {}, timeout=60))
        await asyncio.sleep(1)
        up.disconnect("a")
        await asyncio.sleep(3)
        served, lost = up._running.take, list[str]()

        def take(peer: Any, subject: str, *given: Any) -> Any:
            if "DIRECT.GET" in subject and "REPLIES" in subject and len(lost) < 2:
                lost.append(subject)
                return None
            return served(peer, subject, *given)

        up._running.take = take
        up.reconnect("a")
        assert (await asyncio.wait_for(asking, 30)).data == {"ok": 1}
        assert len(lost) == 2


# -- what is known of a call -----------------------------------------------------------------------------
@pytest.mark.parametrize("timeout", [0.5, 1.0, 1.4, 5.0])
async def test_without_workers_nothing_was_sent_however_short_the_timeout(timeout: float):
    async with broker() as up, up.agent(Worker, "a") as agent:
        with up.no_workers():
            with pytest.raises(Unavailable):
                await agent.send("b", "work", {}, timeout=timeout)
            with pytest.raises(Unavailable):
                await agent.request("b", "work", {}, timeout=timeout)
        assert not up.sent


@pytest.mark.parametrize("options", [{}, {"timeout": 2.0}, {"timeout": 1.0}])
async def test_a_start_without_workers_ends_in_time_and_says_so(options: dict[str, float]):
    loop = asyncio.get_running_loop()
    async with broker() as up:
        begun = loop.time()
        with up.no_workers(), pytest.raises(Unavailable):
            await up.agent(Worker, "a").start(**options)
        assert not options or loop.time() - begun <= options["timeout"] + 0.1


async def test_who_is_refused_after_a_try_that_was_not_answered_does_not_know():
    async with broker() as up:
        agent = up.agent(Worker, "a")
        await agent.start()
        up.lose_answers("send", times=None)
        sending = asyncio.create_task(agent.send("b", "work", {}))
        await asyncio.sleep(0.5)
        up.forget("a")
        with pytest.raises(OutcomeUnknown):
            await sending
        assert len(up.sent) == 1
        with pytest.raises(IdentityRefused):
            await agent.send("b", "work", {})


class Anything(BaseModel):
    x: Any = None


@pytest.mark.parametrize("data", [Anything(x=object()), Anything(x="\ud800"), {"x": Anything(x=object())}])
async def test_a_model_without_a_json_form_is_an_invalid_message(data: Any):
    async with broker() as up, up.agent(Worker, "a") as agent:
        with pytest.raises(InvalidMessage):
            await agent.send("b", "work", data)


async def test_half_a_character_is_no_text_of_a_reply():
    refused: list[BaseException] = []

    async def write(message: AgentMessage) -> None:
        try:
            async with message.reply_stream() as out:
                await out.write("\ud800")
        except InvalidMessage as error:
            refused.append(error)
            raise

    async with broker() as up, up.agent(Worker, "b") as target, up.agent(Worker, "a") as agent:
        target.work = write
        with pytest.raises((RequestFailed, TimeoutError)):
            await agent.request("b", "ask", {}, timeout=2)
        assert refused


# -- state -----------------------------------------------------------------------------------------------
async def test_an_update_whose_maker_was_cancelled_is_made_all_the_same():
    async with broker() as up, up.agent(Worker, "a") as agent:
        await agent.update_state({"n": 1})
        up.lose_calls("state", times=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.update_state({"n": 2}), 0.1)
        assert await agent.refresh_state() == {"n": 2} == up.state_of("a")


async def test_a_stop_waits_for_updates_that_are_under_way():
    """Their makers were handlers that were ended."""
    async with broker() as up, up.agent(Worker, "a") as sender:
        agent = up.agent(Worker, "b")
        made = asyncio.Event()

        async def update(_: AgentMessage) -> None:
            up.lose_answers("state", times=1)
            first = asyncio.create_task(agent.update_state({"n": 1}))
            await asyncio.sleep(0.01)
            made.set()
            await agent.update_state({"m": 1})  # when the first was written
            await first

        agent.work = update
        await agent.start()
        await sender.send("b", "work", {})
        await made.wait()
        await agent.stop(timeout=0.1)
        assert agent.state == {"n": 1, "m": 1} == up.state_of("b")


async def test_an_update_that_was_cancelled_before_its_answer_spoils_no_other():
    async with broker() as up, up.agent(Worker, "a") as agent:
        await agent.update_state({"n": 1})
        up.lose_answers("state", times=1)
        first = asyncio.create_task(agent.update_state({"n": 2}))
        await asyncio.sleep(0.01)
        beside = asyncio.create_task(agent.update_state({"m": 1}))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await beside == {"n": 2, "m": 1}
        assert await agent.update_state({"k": 1}) == {"n": 2, "m": 1, "k": 1} == up.state_of("a")
