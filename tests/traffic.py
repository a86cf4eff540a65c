"""Senders on a bare connection: no repetition, no comfort, every verdict counted, any number in flight."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import count

import orjson

from mas_nats.config import Endpoint
from mas_nats.connection import NatsConnection
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict
from tests.system import System

BODY = orjson.dumps({"text": "x" * 1000})

Exchange = Callable[[bytes, dict[str, str]], Awaitable[bytes]]


class Caller:
    """Calls ``send`` as one agent, over ``exchange``, and keeps what came of it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.accepted: list[str] = []
        self.latencies: list[float] = []  # seconds, of accepted ones
        self.answered: list[float] = []  # when, by the loop's clock
        self.refused: Counter[str] = Counter()

    async def send(self, target: str, *, message_id: str = "", body: bytes = BODY) -> Verdict:
        """Send once."""
        message_id = message_id or new_message_id()
        fields = {headers.MSG_ID: message_id, headers.TARGET: target, headers.TYPE: "work"}
        clock = asyncio.get_running_loop().time
        started = clock()
        verdict = Verdict.decode(await self._exchange(body, fields))
        if verdict.ok:
            self.accepted.append(message_id)
            self.answered.append(clock())
            self.latencies.append(self.answered[-1] - started)
        else:
            self.refused[verdict.decision] += 1
        return verdict

    async def keep_sending(self, targets: Iterable[str], in_flight: int, until: asyncio.Event) -> None:
        """Keep ``in_flight`` messages on their way to ``targets``, in turn, until ``until`` is set."""
        wanted, turn = list(targets), count()

        async def work() -> None:
            while not until.is_set():
                await self.send(wanted[next(turn) % len(wanted)])

        await asyncio.gather(*(work() for _ in range(in_flight)))


@contextlib.asynccontextmanager
async def callers(system: System, namespace: str, *agents: str) -> AsyncIterator[list[Caller]]:
    """A connection and a caller for each agent."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for agent in agents:
            endpoint = Endpoint(system.broker.url, system.tls(agent, namespace))
            connection = NatsConnection(endpoint, name=agent)
            await connection.open(10)
            stack.push_async_callback(connection.close)
            opened.append(Caller(_calls(connection, agent)))
        yield opened


def _calls(connection: NatsConnection, agent: str) -> Exchange:
    subject = subjects.call(agent, Op.SEND)

    async def exchange(body: bytes, fields: dict[str, str]) -> bytes:
        return (await connection.exchange(subject, body, fields, 60)).data

    return exchange


async def at_rate(
    per_second: float, in_flight: int, act: Callable[[], Awaitable[object]], until: asyncio.Event
) -> None:
    """Start ``act`` so many times a second, never more than ``in_flight`` at once, until ``until`` is set.

    What could not be started in time is not made up for.
    """
    clock = asyncio.get_running_loop().time
    free = asyncio.Semaphore(in_flight)
    due = clock()

    async def run() -> None:
        try:
            await act()
        finally:
            free.release()

    async with asyncio.TaskGroup() as tasks:
        while not until.is_set():
            await free.acquire()
            tasks.create_task(run())
            due = max(due + 1 / per_second, clock() - 0.05)
            await asyncio.sleep(max(0.0, due - clock()))
