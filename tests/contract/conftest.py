"""The stage of the behaviour suite: agents ``a``, ``b`` and ``c`` that may all talk, ``d`` that may not, and
``ghost``, that nobody declared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from mas_nats import Agent, AgentMessage
from tests.contract.broker import LIMITS, Broker, InMemory, Namespace, RealBroker
from tests.system import System

A = TypeVar("A", bound=Agent[Any])

AGENTS = {"a": ("router",), "b": ("qa", "math"), "c": ("qa",), "d": ("hidden",)}
ALLOW = {"a": ("b", "c", "ghost"), "b": ("a", "c"), "c": ("a", "b")}


class Recorder(Agent[Any]):
    """Runs ``work`` for every message and records what it got."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.work: Callable[[AgentMessage], Awaitable[None]] | None = None
        self.got: list[AgentMessage] = []
        self.running = 0
        self.peak = 0

    async def on_message(self, message: AgentMessage) -> None:
        self.got.append(message)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.work is not None:
                await self.work(message)
        finally:
            self.running -= 1


class Stage:
    """Makes agents of one namespace, and stops them."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._made: list[Agent[Any]] = []

    def make(self, cls: type[A], agent_id: str, **options: Any) -> A:
        made = cls(agent_id, capabilities=AGENTS[agent_id], **self.namespace.options(agent_id), **options)
        self._made.append(made)
        return made

    async def start(self, cls: type[A], agent_id: str, **options: Any) -> A:
        made = self.make(cls, agent_id, **options)
        await made.start()
        return made

    async def recorders(self, *agent_ids: str) -> list[Recorder]:
        return list(await asyncio.gather(*(self.start(Recorder, each) for each in agent_ids)))

    async def all_acknowledged(self, agent_id: str) -> None:
        async with asyncio.timeout(10):
            while await self.namespace.waiting(agent_id):
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await asyncio.gather(*(agent.stop(timeout=1) for agent in self._made))
        self.namespace.close()


BROKERS = ("memory", "nats")


def _required(request: pytest.FixtureRequest) -> str:
    """The broker to test, unless the test is marked as one that only the other can show."""
    kind: str = request.param
    if (only := request.node.get_closest_marker("only")) is not None and kind != only.args[0]:
        pytest.skip(only.kwargs["reason"])
    return kind


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """In memory, or the running system that all tests share."""
    if _required(request) == "memory":
        return InMemory()
    return RealBroker(request.getfixturevalue("system"))


@pytest.fixture(params=BROKERS)
def own_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that a test may break."""
    if _required(request) == "memory":
        yield InMemory()
        return
    system = System.up(tmp_path_factory.mktemp("own") / ".mas")
    yield RealBroker(system)
    system.down()


@pytest.fixture
async def stage(broker: Broker) -> AsyncIterator[Stage]:
    stage = Stage(await broker.namespace(AGENTS, ALLOW, LIMITS))
    yield stage
    await stage.close()


def now() -> float:
    """Seconds on the clock that the broker under test goes by."""
    return asyncio.get_running_loop().time()


async def eventually(condition: Callable[[], object], timeout: float = 8.0) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
