"""Streamed replies while things break: workers and producers killed, readers cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.jetstream import direct_get_page
from mas_nats import Agent, AgentMessage, MasError, RequestFailed, RequestTimeout
from mas_nats.policy.document import Limits
from mas_nats.stream import Reader
from mas_nats.wire import headers, subjects
from tests.instances import instances
from tests.processes import kill
from tests.system import System, mas, mas_json

LIMITS = Limits(ack_wait=1.5, retry_delay=0.1, retry_delay_max=0.5)
WORDS = 1000


class Writer(Agent[dict[str, Any]]):
    @Agent.on("tell")
    async def tell(self, message: AgentMessage, data: dict[str, Any]) -> None:
        async with message.reply_stream() as out:
            for number in range(data["words"]):
                await out.write(f"{data['mark']}-{number} ")
                await asyncio.sleep(0.002)


def words(mark: object, count: int) -> str:
    return "".join(f"{mark}-{number} " for number in range(count))


async def told(reader: Agent[Any], got: list[str], mark: object, count: int, timeout: float = 60) -> str:
    """Read a whole answer; ``got`` has what came even where it fails."""
    async for chunk in reader.stream("writer", "tell", {"mark": mark, "words": count}, timeout=timeout):
        got.append(str(chunk))
    return "".join(got)


async def some(got: list[str], count: int = 3) -> None:
    async with asyncio.timeout(20):
        while len(got) < count:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def reading(system: System, namespace: str) -> AsyncIterator[Agent[Any]]:
    tls = system.tls("reader", namespace)
    async with Agent("reader", server_addr=system.broker.url, tls=tls, receive=False) as agent:
        yield agent


@pytest.fixture
async def namespace(system: System) -> str:
    return await system.namespace(["reader", "writer"], {"reader": ["writer"]}, limits=LIMITS)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of its own, to be hurt."""
    running = System.up(tmp_path_factory.mktemp("victim") / ".mas")
    yield running
    running.down()


@pytest.mark.slow
async def test_the_server_killed_while_it_carries_streams(victim: System) -> None:
    """Frames live in memory: each stream is whole, or ends in an error; none has a hole."""
    namespace = await victim.namespace(["reader", "writer"], {"reader": ["writer"]}, limits=LIMITS)
    tls = victim.tls("writer", namespace)
    async with (
        reading(victim, namespace) as reader,
        Writer("writer", server_addr=victim.broker.url, tls=tls),
    ):
        got: list[list[str]] = [[] for _ in range(8)]
        telling = [asyncio.create_task(told(reader, each, n, WORDS, 40)) for n, each in enumerate(got)]
        await some(got[0])
        kill(victim.broker.pid, "nats-server")
        results = await asyncio.gather(*telling, return_exceptions=True)
        for number, result in enumerate(results):
            assert isinstance(result, RequestFailed | RequestTimeout) or result == words(number, WORDS)
            assert words(number, WORDS).startswith("".join(got[number])), "a hole, or two answers in one"
        assert await told(reader, [], "after", 100) == words("after", 100)


@pytest.mark.slow
async def test_workers_killed_while_they_carry_streams(victim: System) -> None:
    """Each stream is whole; each frame has its decision, and the chain of them is intact."""
    namespace = await victim.namespace(["reader", "writer"], {"reader": ["writer"]}, limits=LIMITS)
    tls = victim.tls("writer", namespace)
    async with (
        reading(victim, namespace) as reader,
        Writer("writer", server_addr=victim.broker.url, tls=tls),
    ):
        got: list[list[str]] = [[] for _ in range(8)]
        telling = asyncio.gather(*(told(reader, each, n, WORDS) for n, each in enumerate(got)))
        await some(got[0])
        for name in ("w1", "w2", "w1"):
            kill(victim.broker.pid, name)
            await asyncio.sleep(0.5)
        texts = await telling
    assert texts == [words(n, WORDS) for n in range(8)]
    async with victim.tenant(namespace) as client:
        frames = await direct_get_page(client, subjects.REPLIES_STREAM, ">", 1)
    stored = {frame.headers[headers.MESSAGE_ID] for frame in frames}
    assert len(stored) == len(frames) > 8
    where = ("--folder", str(victim.layout.root), "--namespace", namespace)
    async with asyncio.timeout(20):
        while stored - await decided(*where):
            await asyncio.sleep(0.2)
    assert mas("audit", "verify", *where).returncode == 0


async def decided(*where: str) -> set[str]:
    """The frames with a decision in the audit."""
    arguments = ("audit", "query", "--target", "reader", "--limit", "10000", *where)
    found: Any = (await asyncio.to_thread(mas_json, *arguments))["decisions"]
    return {each["message_id"] for each in found if each["op"] == "frame"}


async def test_a_killed_producers_stream_goes_on_when_the_next_says_the_same(
    system: System, namespace: str, tmp_path: Path
) -> None:
    with instances(system, namespace, "writer", tmp_path / "log") as writers:
        first = writers.start("--pause", "0.02")
        async with reading(system, namespace) as reader:
            got: list[str] = []
            telling = asyncio.create_task(told(reader, got, "same", 300))
            await some(got)
            first.kill()
            before = len(got)
            writers.start("--pause", "0.002")
            assert await telling == words("same", 300)
            assert len(got) > before


async def test_a_killed_producers_stream_ends_in_an_error_when_the_next_says_something_else(
    system: System, namespace: str, tmp_path: Path
) -> None:
    """Each instance says its own pid."""
    with instances(system, namespace, "writer", tmp_path / "log") as writers:
        first = writers.start("--pause", "0.02")
        async with reading(system, namespace) as reader:
            got: list[str] = []
            telling = asyncio.create_task(told(reader, got, "", 300))
            await some(got)
            first.kill()
            killed = time.monotonic()
            writers.start("--pause", "0.02")
            with pytest.raises(RequestFailed, match="began to answer a second time"):
                await telling
            assert time.monotonic() - killed < LIMITS.ack_wait + 10
            assert words(first.pid, 300).startswith("".join(got)), "nothing of the second was delivered"


async def test_a_killed_producer_that_nobody_replaces_is_a_timeout(
    system: System, namespace: str, tmp_path: Path
) -> None:
    with instances(system, namespace, "writer", tmp_path / "log") as writers:
        first = writers.start("--pause", "0.02")
        async with reading(system, namespace) as reader:
            got: list[str] = []
            telling = asyncio.create_task(told(reader, got, "x", 10_000, timeout=2.5))
            await some(got)
            first.kill()
            with pytest.raises(RequestTimeout, match="did not end its answer"):
                await telling


async def cut_off(reader: Agent[Any], telling: asyncio.Task[str], times: int) -> None:
    """Tear the reader's connection, again and again."""
    for _ in range(times):
        await asyncio.sleep(0.25)
        if telling.done():
            return
        connection: Any = reader._alive().connection
        if transport := connection._client._transport._io_writer.transport:  # none while TLS begins
            transport.abort()


async def test_a_reader_that_reconnects_misses_nothing(system: System, namespace: str) -> None:
    tls = system.tls("writer", namespace)
    async with reading(system, namespace) as reader, Writer("writer", server_addr=system.broker.url, tls=tls):
        got: list[str] = []
        telling = asyncio.create_task(told(reader, got, "again", WORDS))
        await some(got)
        await cut_off(reader, telling, 5)
        assert await telling == words("again", WORDS)


async def test_the_control_without_fetching_frames_are_missed(
    system: System, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, but what the connection missed is looked for nowhere: there is no text with a hole either."""

    async def look_nowhere(self: Reader, left: float) -> None:
        self._look = False
        await asyncio.sleep(min(0.05, left))

    monkeypatch.setattr(Reader, "_fetch", look_nowhere)
    tls = system.tls("writer", namespace)
    async with reading(system, namespace) as reader, Writer("writer", server_addr=system.broker.url, tls=tls):
        got: list[str] = []
        telling = asyncio.create_task(told(reader, got, "again", WORDS, timeout=3))
        await some(got)
        await cut_off(reader, telling, 5)
        with pytest.raises(MasError):
            await telling
    assert words("again", WORDS).startswith("".join(got))
