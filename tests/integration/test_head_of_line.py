"""Handlers that ask others: the answer never waits behind what waits for it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage, Overloaded, RequestFailed, RequestTimeout
from mas_nats.policy.document import Limits
from tests.system import System

ASKED = 600
IN_FLIGHT = 200
ANSWERED_AFTER = 5.0


class Asking(Agent[dict[str, Any]]):
    """Handles ``work`` by asking ``slow``; ``go`` by asking the other of a pair, ``depth`` times."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.done: list[str] = []
        self.running = self.peak = 0
        self.released = asyncio.Event()
        self.errors: list[str] = []
        self.answers: dict[int, asyncio.Future[None]] = {}

    @Agent.on("work")
    async def work(self, message: AgentMessage, data: dict[str, Any]) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            reply = await self.request("slow", "ask", {"n": data["n"]}, timeout=120)
        finally:
            self.running -= 1
        assert reply.data["n"] == data["n"]
        self.done.append(message.message_id)

    @Agent.on("hold")
    async def hold(self, message: AgentMessage) -> None:
        await self.released.wait()

    @Agent.on("ask")
    async def ask(self, message: AgentMessage, data: dict[str, Any]) -> None:
        await asyncio.sleep(ANSWERED_AFTER)
        await message.reply("answer", {"n": data["n"]})

    @Agent.on("go")
    async def go(self, message: AgentMessage, data: dict[str, Any]) -> None:
        other = "pong" if self.agent_id == "ping" else "ping"
        depth = 0
        if data["depth"]:
            try:
                left = (message.deadline.timestamp() - time.time()) * 0.8 if message.deadline else 10
                reply = await self.request(other, "go", {"depth": data["depth"] - 1}, timeout=left)
            except RequestTimeout as error:
                self.errors.append(str(error))
                raise
            depth = reply.data["depth"] + 1
        await message.reply("went", {"depth": depth})

    @Agent.on("by-message")
    async def by_message(self, message: AgentMessage, data: dict[str, Any]) -> None:
        """The wrong way, for the control: the answer comes as a message, and so needs a free slot."""
        self.answers[data["n"]] = asyncio.get_running_loop().create_future()
        await self.send("slow", "ask-by-message", {"n": data["n"]})
        async with asyncio.timeout(3):
            await self.answers[data["n"]]
        self.done.append(message.message_id)

    @Agent.on("ask-by-message")
    async def ask_by_message(self, message: AgentMessage, data: dict[str, Any]) -> None:
        await self.send(message.sender, "answer", data)

    @Agent.on("answer")
    async def answer(self, message: AgentMessage, data: dict[str, Any]) -> None:
        self.answers[data["n"]].set_result(None)


async def stage(system: System, stack: AsyncExitStack, limits: Limits, *names: str) -> list[Asking]:
    """An instance for each name; all may talk to all."""
    namespace = await system.namespace(set(names), {name: ["*"] for name in names}, limits=limits)
    made = [Asking(name, server_addr=system.broker.url, tls=system.tls(name, namespace)) for name in names]
    for agent in made:
        await stack.enter_async_context(agent)
    return made


@pytest.mark.slow
async def test_handlers_that_all_wait_for_answers_all_get_them(system: System) -> None:
    """600 messages, 200 in flight, each asks somebody who takes 5 s. (The ancestor fails 418 of them.)"""
    limits = Limits(in_flight=IN_FLIGHT, max_ack_pending=4 * IN_FLIGHT)
    async with AsyncExitStack() as stack:
        sender, worker, _, _ = await stage(system, stack, limits, "sender", "worker", "slow", "slow")
        started = time.monotonic()
        sent = await asyncio.gather(*(sender.send("worker", "work", {"n": n}) for n in range(ASKED)))
        async with asyncio.timeout(90):
            while len(worker.done) < ASKED:
                await asyncio.sleep(0.05)
        took = time.monotonic() - started
    assert sorted(worker.done) == sorted(sent)
    assert worker.peak == IN_FLIGHT
    assert took >= ASKED / IN_FLIGHT * ANSWERED_AFTER, "they waited in rounds of 200, as they should"


async def test_the_control_answers_that_are_messages_do_wait(system: System) -> None:
    """With answers in the inbox, as many as may be in flight wait for each other until they give up."""
    limits = Limits(in_flight=2, max_ack_pending=2, max_deliver=1)
    async with AsyncExitStack() as stack:
        sender, worker, _ = await stage(system, stack, limits, "sender", "worker", "slow")
        started = time.monotonic()
        await asyncio.gather(*(sender.send("worker", "by-message", {"n": n}) for n in range(2)))
        async with asyncio.timeout(20):
            while worker.answers.keys() != {0, 1} or not all(each.done() for each in worker.answers.values()):
                await asyncio.sleep(0.05)
        assert time.monotonic() - started >= 2.5, "nothing moved before the waiting was given up"
        assert worker.done == []


@pytest.mark.parametrize(("in_flight", "enough"), [(1, False), (2, True)])
async def test_a_cycle_needs_a_slot_for_each_time_it_comes_by(
    system: System, in_flight: int, enough: bool
) -> None:
    """ping asks pong asks ping asks pong. With one slot each the second visit waits in vain."""
    limits = Limits(in_flight=in_flight, max_ack_pending=in_flight, max_deliver=1)
    async with AsyncExitStack() as stack:
        sender, _, pong = await stage(system, stack, limits, "sender", "ping", "pong")
        if enough:
            reply = await sender.request("ping", "go", {"depth": 3}, timeout=20)
            assert reply.data == {"depth": 3}
        else:
            with pytest.raises((RequestFailed, RequestTimeout)):
                await sender.request("ping", "go", {"depth": 3}, timeout=3)
            assert "All 1 messages that this instance may have in flight" in pong.errors[0]
            assert "raise limits.in_flight" in pong.errors[0]
        reply = await sender.request("ping", "go", {"depth": 1}, timeout=20)
        assert reply.data == {"depth": 1}, "and it works again"


async def test_replies_come_while_the_inbox_of_the_asker_is_full(system: System) -> None:
    limits = Limits(in_flight=1, max_ack_pending=1, inbox_messages=3)
    async with AsyncExitStack() as stack:
        sender, ping, _ = await stage(system, stack, limits, "sender", "ping", "slow")
        with pytest.raises(Overloaded):
            await asyncio.gather(*(sender.send("ping", "hold", {}, timeout=5) for _ in range(20)))
        reply = await ping.request("slow", "go", {"depth": 0}, timeout=20)
        assert reply.data == {"depth": 0}
        ping.released.set()
