"""How long the explorer takes with a large audit and many agents: each document and each page.

``python -m benchmarks.explorer_pages`` takes some minutes. It brings up a broker of its own, applies a
manifest with 200 agents and runs them all, sends real messages until some are dead letters, and appends a
million entries to the audit through the projector's own draft and store. While it measures, decisions go on
at 100 a second. Everybody sends to everybody, so that the graph is as full as it can be.

A document is one request on a connection of its own; beside the times stands the processor time of the
explorer, which other work on the machine changes much less. A page is timed by Chromium, from the beginning
of the navigation until its data is painted, in a browser that has the page's files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from broker_policy.audit.query import Question, ask
from broker_policy.audit.record import Outcome
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Overtaken
from mas_nats import Agent, AgentMessage
from mas_nats.message import reply_id
from mas_nats.policy.document import Limits
from tests.audit_fill import APPEND, STEP, Cast, fill
from tests.explorer.served import Explorer, exploring
from tests.explorer.test_pages import CHROMIUM
from tests.system import System

WATCH = """
new MutationObserver((_, watching) => {
  if (!document.querySelector("main[data-ready]")) return;
  watching.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.shown = performance.now(); }));
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
SHOWN = """() => new Promise((done) => {
  const look = () => window.shown ? done(window.shown) : setTimeout(look, 5);
  look();
})"""
ENTRIES_A_DECISION = 1.015
SEED = 1 << 30
"""Of what is there before it measures; what goes on then has smaller ones, so no id comes twice."""
BURST = 10
"""Decisions appended at once while it measures, so many times a second."""


class Talker(Agent[dict[str, object]]):
    """Answers, and fails at what it is told to fail at."""

    async def on_message(self, message: AgentMessage) -> None:
        if message.message_type == "broken":
            raise RuntimeError
        if message.expects_reply:
            await message.reply("answer", {})


@dataclass(frozen=True)
class Times:
    """Milliseconds of some tries."""

    p50: float
    worst: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        return cls(statistics.median(seconds) * 1000, max(seconds) * 1000)


async def main(entries: int, count: int, rounds: int, letters: int) -> None:
    """Bring it up, fill it, and print two tables."""
    with tempfile.TemporaryDirectory(prefix="mas-pages-") as folder:
        system = System.up(Path(folder) / ".mas")
        try:
            names = [f"agent-{number:03}" for number in range(count)]
            await measured(system, entries, names, rounds, letters)
        finally:
            system.down()


async def measured(system: System, entries: int, names: list[str], rounds: int, letters: int) -> None:
    began = time.monotonic()
    namespace = await system.namespace(
        names, {name: [names[place - 1]] for place, name in enumerate(names)}, limits=Limits(max_deliver=1)
    )
    say(f"{len(names)} agents applied", began)
    async with contextlib.AsyncExitStack() as stack, system.redis() as redis:
        agents = [Talker(name, **options(system, name, namespace)) for name in names]
        began = time.monotonic()
        for agent in agents:
            await stack.enter_async_context(agent)
        say(f"{len(agents)} agents run", began)
        began = time.monotonic()
        await real_traffic(system, namespace, agents, letters)
        say(f"{letters} dead letters", began)
        store = Store(redis, namespace)
        await settled(store)
        began = time.monotonic()
        decisions = int(entries / ENTRIES_A_DECISION)
        now = int(time.time() * 1000)
        await filled(store, decisions, Cast(names, now - STEP * decisions, logged=False))
        say(f"{(await store.head()).index:,} entries", began)
        with exploring(system, namespace) as explorer:
            async with going_on(store, names):
                await documents(explorer, await paths(store), rounds)
                if CHROMIUM:
                    await pages(explorer, await paths(store), rounds)
                took = time.monotonic()
                report = (await asyncio.to_thread(explorer.ask, "/api/verify", patience=1200)).json()
                say(f"verification: intact {report['intact']}, {report['entries']:,} entries", took)


def options(system: System, name: str, namespace: str) -> dict[str, Any]:
    return {"server_addr": system.broker.url, "tls": system.tls(name, namespace)}


def say(what: str, began: float) -> None:
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)


async def real_traffic(system: System, namespace: str, agents: list[Talker], letters: int) -> None:
    """Every agent sends; one request; and messages that die."""
    for place, agent in enumerate(agents):
        await agent.send(agents[place - 1].agent_id, "note", {})
    await agents[1].request(agents[0].agent_id, "question", {}, id="asked-1", timeout=60)
    for number in range(letters):
        sender = agents[number % len(agents)]
        await sender.send(agents[number % len(agents) - 1].agent_id, "broken", {}, id=f"dead-{number}")
    async with system.tenant(namespace) as nc, asyncio.timeout(300):
        while (await nc.jetstream().stream_info("DLQ")).state.messages < letters:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def settled(store: Store) -> None:
    """Wait until all that really happened is in the audit, and nothing is left to add."""
    async with asyncio.timeout(120):
        for outcome in (" ", Outcome.COMMITTED):
            while await ask(store, Question(outcome=outcome), limit=1):  # noqa: ASYNC110
                await asyncio.sleep(0.2)


async def filled(store: Store, decisions: int, cast: Cast) -> None:
    """Append so many, between what the real projector still appends."""
    for first in range(0, decisions, APPEND):
        count = min(APPEND, decisions - first)
        while True:
            with contextlib.suppress(Overtaken):  # it is one append: then nothing was added
                await fill(store, count, seed=SEED + first, first=first, cast=cast)
                break


@contextlib.asynccontextmanager
async def going_on(store: Store, names: list[str]) -> AsyncIterator[None]:
    """100 decisions a second, until the block ends."""

    async def more() -> None:
        for number in itertools.count(1):
            with contextlib.suppress(Overtaken):  # by what real agents do
                cast = Cast(names, int(time.time() * 1000), logged=False)
                await fill(store, BURST, seed=number, cast=cast)
            await asyncio.sleep(1 / BURST)

    going = asyncio.create_task(more())
    await asyncio.sleep(5)
    try:
        yield
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


async def paths(store: Store) -> dict[str, tuple[str, str]]:
    """What is measured: name, to address of the page ("" for none) and of the document."""
    last = (await store.head()).index

    async def at(index: int, outcome: str = Outcome.HANDLED) -> str:
        [found] = await ask(store, Question(outcome=outcome), limit=1, cursor=index)
        return quote(found.entry["id"], safe="")

    newest, middle = await at(last), await at(last // 2)
    dead = await at(last // 2, Outcome.DEAD)
    refused = await at(last // 2, Outcome.REFUSED)
    reply = reply_id("agent-001", "agent-000", "asked-1")
    mixed, never = "sender=agent-007&target=agent-011", "decision=ALLOWED&violation=default"
    return {
        "overview": ("/", "overview"),
        "topology": ("/topology", "topology"),
        "live": ("/live", ""),
        "agents": ("/agents", "agents"),
        "dead letters": ("/dead-letters", "dead-letters"),
        "dead letters of an agent": ("/dead-letters?agent=agent-007", "dead-letters?agent=agent-007"),
        "audit: the newest": ("/audit", "decisions"),
        "audit: a sender and a target": (f"/audit?{mixed}", f"decisions?{mixed}"),
        "audit: dead": ("/audit?outcome=dead", "decisions?outcome=dead"),
        "audit: of an hour ago": ("/audit?to=1h", "decisions?to=1h"),
        "audit: two that never meet": (f"/audit?{never}", f"decisions?{never}"),
        "audit: the same, to the end": ("", f"decisions?{never}&within=10000"),
        "checkpoints": ("", "checkpoints"),
        "message: newest": (f"/message/{newest}", f"message/{newest}"),
        "message: in the middle": (f"/message/{middle}", f"message/{middle}"),
        "message: in the middle, dead": (f"/message/{dead}", f"message/{dead}"),
        "message: in the middle, refused": (f"/message/{refused}", f"message/{refused}"),
        "message: the first request": ("/message/asked-1", "message/asked-1"),
        "message: the reply to it": (f"/message/{reply}", f"message/{reply}"),
        "message: a real dead letter": ("/message/dead-0", "message/dead-0"),
        "message: none of this id": ("/message/nobody", "message/nobody"),
    }


async def documents(explorer: Explorer, wanted: dict[str, tuple[str, str]], rounds: int) -> None:
    """A table of the documents."""
    print("\n| document | p50 | worst | processor time | bytes |\n|---|---|---|---|---|")
    for name, (_, path) in wanted.items():
        if not path:
            continue
        size = 0

        async def once(path: str = path) -> None:
            nonlocal size
            answer = await asyncio.to_thread(explorer.ask, f"/api/{path}")
            assert answer.status in (200, 404), answer.body
            size = len(answer.body)

        found, used = await timed(once, rounds, explorer.pid)
        times = f"{found.p50:.0f} ms | {found.worst:.0f} ms | {used * 1000:.0f} ms"
        print(f"| {name} | {times} | {size:,} |", flush=True)


async def pages(explorer: Explorer, wanted: dict[str, tuple[str, str]], rounds: int) -> None:
    """A table of the pages."""
    from playwright.async_api import async_playwright  # noqa: PLC0415 - only where there is a Chromium

    print("\n| page | p50 | worst | processor time of all |\n|---|---|---|---|")
    async with async_playwright() as started:
        chromium = await started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await chromium.new_page()
        await page.add_init_script(WATCH)
        first = await loaded(page, f"{explorer.address}/")
        print(f"| overview, in a new browser | {first * 1000:.0f} ms | | |")
        for name, (path, _) in wanted.items():
            if not path:
                continue

            seconds, used = [], 0.0
            for _ in range(rounds):
                await asyncio.sleep(1.1)
                before = processor_time(explorer.pid, *browser_processes())
                seconds.append(await loaded(page, explorer.address + path))
                used += processor_time(explorer.pid, *browser_processes()) - before
            found = Times.of(seconds)
            times = f"{found.p50:.0f} ms | {found.worst:.0f} ms | {used / rounds * 1000:.0f} ms"
            print(f"| {name} | {times} |", flush=True)
        await chromium.close()


async def loaded(page: Any, address: str) -> float:
    """Seconds from the beginning of the navigation until the data can be seen, by the browser's clock."""
    await page.goto(address, wait_until="commit")
    await page.wait_for_selector("main[data-ready]")
    return float(await page.evaluate(SHOWN)) / 1000


async def timed(once: Callable[[], Awaitable[None]], rounds: int, pid: int) -> tuple[Times, float]:
    """Do it so often, with a pause that lets what is kept for a second grow old; and what one time costs."""
    seconds, used = [], 0.0
    for _ in range(rounds):
        await asyncio.sleep(1.1)
        began, before = time.monotonic(), processor_time(pid)
        await once()
        seconds.append(time.monotonic() - began)
        used += processor_time(pid) - before
    return Times.of(seconds), used / rounds


def processor_time(*processes: int) -> float:
    """Seconds that they have used."""
    used = 0
    for each in processes:
        fields = _stat(each)[2:]
        used += int(fields[11]) + int(fields[12]) if fields else 0
    return used / os.sysconf("SC_CLK_TCK")


def browser_processes() -> list[int]:
    """Chromium's, among the descendants of this process."""
    found = {int(each.name): _stat(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit()}

    def ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = int(found[process][3]) if found.get(process) else 0
        return process == os.getpid()

    return [each for each, fields in found.items() if fields and "chrom" in fields[1] and ours(each)]


def _stat(process: int) -> list[str]:
    """Number, name, and what follows, of a process; empty when it has ended."""
    try:
        start, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
    except OSError:
        return []
    number, _, name = start.partition(" (")
    return [number, name, *rest.split()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--letters", type=int, default=100)
    given = parser.parse_args()
    asyncio.run(main(given.entries, given.agents, given.rounds, given.letters))
