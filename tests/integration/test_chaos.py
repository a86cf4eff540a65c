"""A short run of ``make chaos``, and the control: what it says of a system that has really lost something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from redis.asyncio import Redis

from broker_policy.audit.state_marks import DIRECT_STATE
from broker_policy.audit.store import Store
from broker_policy.embedded.ports import free_port
from broker_policy.jetstream import delete_message, direct_get_page, publish
from mas_nats.wire import headers, subjects
from tests.chaos import report
from tests.chaos.crew import DIRECT
from tests.chaos.nemeses import SINGLE, Nemesis, Scene, kill, pause
from tests.chaos.run import Run
from tests.system import System

SEED = 20


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[System]:
    running = System.up(tmp_path / ".mas", "--port", str(free_port()))
    yield running
    running.down()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_nothing_is_lost_whatever_breaks(victim: System, tmp_path: Path) -> None:
    outcome = await Run(victim, SINGLE, 16, SEED, tmp_path / "run", print, rate=300).perform()
    done = report.document({"single": outcome}, SEED, 16)
    print(report.table(done))
    assert outcome.found.faults == {}, report.faults({"single": outcome})
    assert outcome.ok, report.faults({"single": outcome})
    assert len(done["nemeses"]) == len(SINGLE)
    assert all(row["accepted"] and row["recovery_seconds"] is not None for row in done["nemeses"])
    assert done["accepted"] > 2_000
    assert all(row["updates"] for row in done["nemeses"])


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_is_really_lost_is_named(victim: System, tmp_path: Path) -> None:
    """An administrator deletes a message that waits and decisions from Redis, and resets a state."""
    deleted: set[str] = set()
    erased: set[str] = set()
    erased_revision = 0

    async def erase(redis: Redis, store: Store) -> None:
        nonlocal erased_revision
        async for stored in store.entries():
            entry = orjson.loads(stored.body)
            if entry["k"] == "d" and entry["y"] == "note" and entry["id"] not in deleted and not erased:
                assert await redis.xdel(store.layout.chain, stored.identifier)
                erased.add(entry["id"])
            if entry["k"] == "d" and entry["r"] == DIRECT_STATE and not erased_revision:
                assert await redis.xdel(store.layout.chain, stored.identifier)
                erased_revision = int(entry["id"])

    async def strike(scene: Scene) -> None:
        handlers = [process.pid for process in scene.crew.processes if process.name.startswith("h")]
        pause(handlers)
        async with scene.system.tenant(scene.namespace) as nc:
            while not deleted:  # what was acknowledged before the pause may be gone by now
                page = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox("desk"), 1)
                waiting = [
                    (each.headers[headers.MESSAGE_ID], each.sequence)
                    for each in page
                    if each.headers[headers.TYPE] == "note"
                ]
                if waiting:
                    message_id, sequence = waiting[-1]
                    if await delete_message(nc, subjects.INBOX_STREAM, sequence):
                        deleted.add(message_id)
        async with scene.system.redis() as redis:
            while not (erased and erased_revision):
                await erase(redis, Store(redis, scene.namespace))
        async with scene.system.tenant(scene.namespace) as nc:
            await publish(nc, subjects.kv_key(subjects.STATE_BUCKET, DIRECT), b"{}", {})
        kill(handlers)  # with what was delivered to them already

    run = Run(victim, [Nemesis("sabotage", strike)], 4, SEED, tmp_path / "run", print, rate=100, patience=4)
    outcome = await run.perform()
    updates = {one for one in outcome.found.lost if one.startswith("k")}
    unheard = {
        one
        for one, all_of in outcome.history.kept.items()
        if any((each.agent, each.revision) == (DIRECT, erased_revision) for each in all_of)
    }
    assert {"k1-1", "k2-1"} <= updates
    assert outcome.found.lost == deleted | updates
    assert len(unheard) == 1
    assert outcome.found.unaudited == erased | unheard
    assert not outcome.evidence.intact
    assert not outcome.ok
    done = report.document({"single": outcome}, SEED, 4)
    assert (done["lost"], done["unaudited"]) == (len(deleted) + len(updates), len(erased) + 1)
    assert (done["chain_ok"], done["ok"]) == (False, False)
    assert done["nemeses"][0]["lost"] == done["lost"]
    assert any(min(outcome.found.lost) in line for line in report.faults({"single": outcome}))
