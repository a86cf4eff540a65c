"""Dead letters of a whole system: nothing exhausted stays behind, and ``mas dlq`` deals with what died."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker_policy import cli
from broker_policy.audit.recall import Recall
from broker_policy.audit.store import Store
from broker_policy.cli.app import app
from broker_policy.dead_letters.letters import Letter, Wanted, letters
from mas_nats import Agent, AgentMessage, Reject, RequestFailed
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import CircuitBreaker, Governance
from mas_nats.wire import subjects
from tests.load import Handling, audited, send_all
from tests.parts import Parts, parts
from tests.system import System

UNBROKEN = Governance(circuit_breaker=CircuitBreaker(enabled=False))
"""All messages fail here, and all are to be sent."""
LIMITS = Limits(ack_wait=1.0, retry_delay=0.1, retry_delay_max=0.2, max_deliver=2, in_flight=64)
cli.load()
SECRET = "4111 1111 1111 1112"  # no card: its check digit is wrong, so that it is delivered


class Closed(Handling):
    """Rejects everything while it is closed."""

    closed = True

    async def on_message(self, message: AgentMessage) -> None:
        if self.closed:
            raise Reject(f"closed, says {message.data.get('card', '')}")
        await super().on_message(message)


def options(system: System, namespace: str, agent: str) -> dict[str, Any]:
    return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}


async def all_dead(system: System, namespace: str) -> list[Letter]:
    async with system.tenant(namespace) as nc:
        return [letter async for letter in letters(nc, Wanted())]


# -- what no advisory announced -----------------------------------------------------------------------------
async def silence(nc: Any, agent: str, done: asyncio.Event) -> None:
    """Be an instance whose handlers die without a word: takes what comes, and never acknowledges."""
    pull = await nc.jetstream().pull_subscribe_bind(consumer=agent, stream=subjects.INBOX_STREAM)
    while not done.is_set():
        try:
            for message in await pull.fetch(50, timeout=0.3):
                await message.nak()
        except TimeoutError:
            continue
    await pull.unsubscribe()


async def without_advisories(up: Parts, *, sweep_every: float, seconds: float) -> tuple[set[str], set[str]]:
    """Delete ``ADVISORIES`` while an agent exhausts what it gets; the ids accepted, and those that died."""
    await up.start_worker(sweep_every=sweep_every)
    namespace = await up.namespace(["asker", "mute"], {"asker": ["mute"]}, limits=LIMITS, governance=UNBROKEN)
    done = asyncio.Event()
    async with up.tenant(namespace) as nc, Agent("asker", **options(up, namespace, "asker")) as asker:
        handlers = [asyncio.create_task(silence(nc, "mute", done)) for _ in range(2)]

        async def delete(count: int) -> None:
            if count == 40:
                await nc.jetstream().delete_stream(subjects.ADVISORIES_STREAM)

        accepted = await send_all(asker, "mute", 200, 8, progress=delete)
        dead: set[str] = set()
        ends = asyncio.get_running_loop().time() + seconds
        while accepted - dead and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.1)
            dead = {letter.text("Mas-Message-Id") async for letter in letters(nc, Wanted(agent="mute"))}
        done.set()
        await asyncio.gather(*handlers)
    return accepted, dead


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path, workers=0) as running:
        yield running


async def test_what_no_advisory_announced_is_dead_all_the_same(up: Parts) -> None:
    accepted, dead = await without_advisories(up, sweep_every=0.3, seconds=30)
    assert dead == accepted


async def test_the_control_without_a_sweep_it_stays_in_the_inbox(up: Parts) -> None:
    accepted, dead = await without_advisories(up, sweep_every=3600, seconds=3)
    assert dead < accepted


# -- mas dlq ------------------------------------------------------------------------------------------------
async def run(*arguments: str, answer: str = "") -> Any:
    """``mas`` in a thread of this process, so that the agents go on meanwhile."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, input=answer)


async def run_json(*arguments: str) -> Any:
    done = await run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_dead_letters_from_the_command_line(system: System) -> None:
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]}, limits=LIMITS)
    where = ("--folder", str(system.layout.root), "--namespace", namespace)
    desk = Closed("desk", **options(system, namespace, "desk"))
    async with desk, Agent("asker", **options(system, namespace, "asker")) as asker:
        ids = [await asker.send("desk", "note", {"card": SECRET, "n": number}) for number in range(3)]
        with pytest.raises(RequestFailed):
            await asker.request("desk", "ask", {"card": SECRET})
        async with asyncio.timeout(20):
            while len(await all_dead(system, namespace)) < 4:
                await asyncio.sleep(0.05)

        listed = (await run("dlq", "list", *where)).stdout
        assert "Reject" in listed
        rows: Any = await run_json("dlq", "list", "--type", "note", "--limit", "2", *where)
        assert (len(rows["dead_letters"]), rows["more"]) == (2, True)
        first = rows["dead_letters"][0]
        assert (first["sender"], first["agent"], first["reason"]) == ("asker", "desk", "Reject")
        sequence = str(first["sequence"])
        shown = (await run("dlq", "show", sequence, *where)).stdout
        assert "Mas-Dead-Error" in shown
        assert SECRET not in listed + shown
        assert SECRET in (await run("dlq", "show", sequence, "--body", *where)).stdout
        assert (await run("dlq", "show", "4711", *where)).exit_code == 1

        # Which ones has to be said, and purging asks.
        assert (await run("dlq", "redrive", *where)).exit_code == 1
        assert (await run("dlq", "purge", sequence, *where)).exit_code == 1
        assert (await run("dlq", "purge", sequence, "--json", *where)).exit_code == 1
        assert len(await all_dead(system, namespace)) == 4

        tried: Any = await run_json("dlq", "redrive", "--all", "--dry-run", *where)
        assert (tried["would_be_redriven"], len(await all_dead(system, namespace))) == (4, 4)
        refused = await run("dlq", "redrive", sequence, "--to", "asker", "--json", *where)
        assert (refused.exit_code, json.loads(refused.stdout)["kept"]) == (1, 1)
        assert json.loads(refused.stdout)["dead_letters"][0]["decision"] == "AUTHZ_DENIED"

        desk.closed = False
        assert (await run_json("dlq", "redrive", sequence, "--by", "olga", *where))["redriven"] == 1
        assert await desk.wait_handled(set(ids[:1]), timeout=20) == set()
        purged = await run("dlq", "purge", "--type", "ask", "--by", "olga", *where, answer="y\n")
        assert (purged.exit_code, "1 purged" in purged.stdout) == (0, True)
        assert (await run_json("dlq", "redrive", "--agent", "desk", "--since", "1h", *where))["redriven"] == 2
        assert await desk.wait_handled(set(ids), timeout=20) == set()
        assert await all_dead(system, namespace) == []
        assert (await run_json("dlq", "redrive", "--all", *where))["redriven"] == 0

    await audited(system, namespace, "purge", 1)
    audit = await audited(system, namespace, "redrive", 4)
    lines = [each for decisions in audit["decisions"].values() for each in decisions]
    purged = [each for each in lines if each["o"] == "purge"]
    assert [(each["b"], each["y"], each["outcome"]) for each in purged] == [("olga", "ask", "a")]
    kept = [each for each in lines if each["o"] == "redrive" and each["d"] != "ALLOWED"]
    assert [(each["d"], each["t"]) for each in kept] == [("AUTHZ_DENIED", "asker")]
    asked: Any = await run_json("audit", "query", "--message-id", ids[0], *where)
    said = [(each["op"], each["by"], each["dead_letter"], each["outcome"]) for each in asked["decisions"]]
    assert ("redrive", "olga", sequence, "handled") in said
    assert (await run_json("audit", "verify", *where))["intact"] is True
    async with system.redis() as redis:
        recall = Recall(Store(redis, namespace))
        assert await recall.redriven("asker", ids[0], int(sequence)) is True
        assert await recall.redriven("asker", ids[0], int(sequence) + 77) is False
        assert await recall.redriven("desk", ids[0], int(sequence)) is False
