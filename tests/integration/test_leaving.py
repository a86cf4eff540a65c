"""An instance that leaves takes no message with it, whatever it asked for just before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage
from mas_nats.policy.document import Limits
from mas_nats.pull import StandingPull
from mas_nats.wire import subjects
from tests.system import System

MESSAGES = 40
ACK_WAIT = 5.0


class Taker(Agent[dict[str, Any]]):
    """Notes which attempt each message was."""

    def __init__(self, agent_id: str, **options: Any) -> None:
        super().__init__(agent_id, **options)
        self.attempts: list[int] = []
        self.enough = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self.attempts.append(message.attempt)
        if len(self.attempts) == MESSAGES or message.attempt > 1:
            self.enough.set()


async def repeated_after_one_left(system: System) -> bool:
    """One instance asks for messages and leaves at once; then others are sent, and another takes them.

    Whether one of those had been sent to somebody else before.
    """
    namespace = await system.namespace(
        ["sender", "taker"], {"sender": ["taker"]}, limits=Limits(ack_wait=ACK_WAIT)
    )

    def options(name: str) -> dict[str, Any]:
        return {"server_addr": system.broker.url, "tls": system.tls(name, namespace)}

    async with Agent[Any]("taker", receive=False, **options("taker")) as leaving:
        connection = leaving._alive().connection
        sent, publish = asyncio.Event(), connection.publish

        async def noting(*what: Any, **more: Any) -> None:
            await publish(*what, **more)
            sent.set()

        connection.publish = noting  # type: ignore[method-assign]
        pull = StandingPull(
            connection,
            subjects.pull("taker"),
            lambda _: None,
            room=lambda: 100,
            busy=lambda: 0,
            anew=lambda: None,
        )
        await pull.start()
        await sent.wait()
        await pull.stop()
    taker = Taker("taker", **options("taker"))
    async with taker, Agent[Any]("sender", receive=False, **options("sender")) as sender:
        await asyncio.gather(*(sender.send("taker", "work", {}) for _ in range(MESSAGES)))
        await asyncio.wait_for(taker.enough.wait(), 60)
    return max(taker.attempts) > 1


async def test_nothing_is_sent_to_who_has_left(system: System):
    for _ in range(4):
        assert not await repeated_after_one_left(system)


async def test_the_control_leaves_at_once(system: System, monkeypatch: pytest.MonkeyPatch):
    async def not_at_all(_: StandingPull) -> None:
        pass

    monkeypatch.setattr(StandingPull, "_until_all_are_known", not_at_all)
    for _ in range(60):  # who is faster decides; on a busy machine mostly the server
        if await repeated_after_one_left(system):
            return
    pytest.fail("an instance that leaves at once never took a message with it")
