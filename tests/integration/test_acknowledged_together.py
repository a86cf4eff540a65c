"""Messages that are acknowledged many at once: nothing is lost, and everybody is told what became of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mas_nats import Agent, AgentMessage
from mas_nats.acknowledging import LEAST, Acknowledgements
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from mas_nats.wire.subjects import Op
from tests.system import System, mas_json

LIMITS = Limits(ack_wait=3, retry_delay=0.2, retry_delay_max=0.2)
MANY = 10 * LEAST


class Taker(Agent[dict[str, Any]]):
    """Handles at once, but for what ``work`` does."""

    def __init__(
        self, *arguments: Any, work: Callable[[AgentMessage], Any] | None = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self.handled: Counter[int] = Counter()
        self._work = work

    async def on_message(self, message: AgentMessage) -> None:
        if self._work is not None:
            await self._work(message)
        self.handled[message.data["n"]] += 1


@pytest.fixture
async def namespace(system: System) -> str:
    return await system.namespace(["giver", "taker"], {"giver": ["taker"]}, limits=LIMITS)


def options(system: System, namespace: str, name: str) -> dict[str, Any]:
    return {"server_addr": system.broker.url, "tls": system.tls(name, namespace)}


async def give(system: System, namespace: str, numbers: range) -> None:
    async with Agent[Any]("giver", receive=False, **options(system, namespace, "giver")) as giver:
        await asyncio.gather(*(giver.send("taker", "work", {"n": n}, id=f"m{n}") for n in numbers))


async def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until ``condition`` holds, or is true when awaited."""
    async with asyncio.timeout(seconds):
        while True:
            said = condition()
            if await said if asyncio.iscoroutine(said) else said:
                return
            await asyncio.sleep(0.02)


async def waiting(system: System, namespace: str) -> int:
    """How many messages lie in the inbox."""
    async with system.tenant(namespace) as nc:
        info = await nc.jetstream().stream_info("INBOX", subjects_filter=subjects.inbox("taker"))
        return sum((info.state.subjects or {}).values())


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """What instances ask for together from here on: what was answered, and how many it was about."""
    found: list[tuple[str | None, int]] = []
    original = Acknowledgements._refusal

    async def noting(self: Acknowledgements, since: int, last: int, most: int) -> str | None:
        refused = await original(self, since, last, most)
        found.append((refused, most))
        return refused

    monkeypatch.setattr(Acknowledgements, "_refusal", noting)
    return found


async def handled_in_audit(system: System, namespace: str) -> int:
    place = ("--namespace", namespace, "--folder", str(system.layout.root))
    query = ("audit", "query", "--target", "taker", "--outcome", "handled", "--limit", "1000", *place)
    found = await asyncio.to_thread(mas_json, *query)
    return len(found["decisions"])  # type: ignore[arg-type]


async def test_a_backlog_is_taken_out_in_few_calls_and_the_audit_says_handled(
    system: System, namespace: str, monkeypatch: pytest.MonkeyPatch
):
    found = asked(monkeypatch)
    await give(system, namespace, range(MANY))
    async with Taker("taker", **options(system, namespace, "taker")) as taker:
        await eventually(lambda: len(taker.handled) == MANY)
        await eventually(lambda: _empty(system, namespace))
    assert set(taker.handled.values()) == {1}
    together = sum(most for refused, most in found if refused is None)
    assert together > MANY / 2, found
    assert len(found) <= MANY / LEAST
    await eventually(lambda: _all_handled(system, namespace, MANY), 60)


async def _empty(system: System, namespace: str) -> bool:
    return await waiting(system, namespace) == 0


async def _all_handled(system: System, namespace: str, count: int) -> bool:
    return await handled_in_audit(system, namespace) == count


async def test_one_that_fails_among_many_is_tried_again(system: System, namespace: str):
    async def work(message: AgentMessage) -> None:
        if message.data["n"] % LEAST == 3 and message.attempt == 1:
            raise ValueError("not now")

    await give(system, namespace, range(MANY))
    async with Taker("taker", work=work, **options(system, namespace, "taker")) as taker:
        await eventually(lambda: len(taker.handled) == MANY)
        await eventually(lambda: _empty(system, namespace))
    assert set(taker.handled.values()) == {1}


async def test_what_one_instance_still_has_survives_what_another_takes_out(system: System, namespace: str):
    """The slow one never ends; what it had is handled by the other when it is gone, each of them."""
    never = asyncio.Event()

    async def hold(message: AgentMessage) -> None:
        if message.data["n"] < 5:
            await never.wait()

    slow = Taker("taker", work=hold, **options(system, namespace, "taker"))
    await slow.start()
    await give(system, namespace, range(5))
    async with Taker("taker", **options(system, namespace, "taker")) as quick:
        await give(system, namespace, range(5, MANY))
        await eventually(lambda: len(slow.handled) + len(quick.handled) == MANY - 5)
        await eventually(lambda: _are_left(system, namespace, 5))
        await slow.stop(timeout=0)
        await eventually(lambda: len({**slow.handled, **quick.handled}) == MANY)
        await eventually(lambda: _empty(system, namespace))


async def _are_left(system: System, namespace: str, count: int) -> bool:
    return await waiting(system, namespace) == count


KILLED = """
import asyncio, sys
from mas_nats import Agent, TlsClientConfig

class Taker(Agent):
    async def on_message(self, message):
        print(message.data["n"], flush=True)

async def main():
    ca, cert, key = sys.argv[2:]
    async with Taker("taker", server_addr=sys.argv[1], tls=TlsClientConfig(ca, cert, key)):
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_instance_that_is_killed_loses_nothing(system: System, namespace: str):
    """SIGKILL while it takes a backlog: what was not acknowledged comes again, to another."""
    await give(system, namespace, range(MANY))
    tls = system.tls("taker", namespace)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        KILLED,
        system.broker.url,
        *map(str, tls.paths),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    seen: set[int] = set()
    for _ in range(LEAST + 5):
        seen.add(int(await process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    seen |= {int(line) for line in (await process.stdout.read()).split(b"\n") if line}
    await process.wait()
    async with Taker("taker", **options(system, namespace, "taker")) as taker:
        await eventually(lambda: seen | set(taker.handled) == set(range(MANY)))
        await eventually(lambda: _empty(system, namespace))


async def test_without_such_calls_each_is_acknowledged_by_itself(
    system: System, namespace: str, monkeypatch: pytest.MonkeyPatch
):
    """A worker that does not take the call, as an older one, and an account that may not ask."""
    monkeypatch.setattr(
        subjects, "call", lambda agent, op: f"mas.call.{agent}.{'none' if op == Op.ACK else op}"
    )
    found = asked(monkeypatch)
    await give(system, namespace, range(MANY))
    begun = time.monotonic()
    async with Taker("taker", **options(system, namespace, "taker")) as taker:
        await eventually(lambda: len(taker.handled) == MANY)
        await eventually(lambda: _empty(system, namespace))
    assert time.monotonic() - begun < 20
    assert set(taker.handled.values()) == {1}
    assert found
    assert all(refused is not None for refused, _ in found)
