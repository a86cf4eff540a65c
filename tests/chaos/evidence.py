"""What the system says after a run: dead letters, states and audit, once it has come to rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from redis.exceptions import RedisError

from broker_policy.audit import log
from broker_policy.audit.layout import BLOCK, Layout
from broker_policy.audit.store import Store
from broker_policy.direct_state.positions import Positions
from broker_policy.jetstream import JetStreamError, StoredMessage, direct_get_page, get_last
from mas_nats.wire import headers, subjects
from tests.chaos.checker import OPEN
from tests.chaos.crew import DIRECT, MEDIATED
from tests.system import System, mas

AWAY = (RedisError, JetStreamError, nats.errors.Error, OSError, TimeoutError)
STANDSTILL = 90.0
"""Seconds without any progress after which what is not settled never will be."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was collected."""

    export: Path
    dead: dict[str, str]  # message id -> reason
    intact: bool
    findings: list[dict[str, Any]]
    entries: int
    states: dict[str, dict[str, int]]  # of each agent that keeps one
    revisions: list[int]  # of the direct one, that are kept


async def rest(system: System, namespace: str, say: Callable[[str], None]) -> float:
    """Wait until the log is projected and every decision settled, or nothing moves; seconds it took."""
    started = moved = time.monotonic()
    last: tuple[int, ...] = ()
    while True:
        with contextlib.suppress(*AWAY):
            now = await _unfinished(system, namespace)
            if not any(now):
                return time.monotonic() - started
            if now != last:
                moved, last = time.monotonic(), now
                say(
                    f"settling: {now[0]} records to project, {now[1]} decisions without an outcome, "
                    f"{now[2]} revisions behind the direct state"
                )
        if time.monotonic() - moved > STANDSTILL:
            say("nothing moves any more")
            return time.monotonic() - started
        await asyncio.sleep(1)


async def _unfinished(system: System, namespace: str) -> tuple[int, int, int]:
    """Records that are not projected, decisions whose outcome is open, revisions behind the direct state."""
    layout = Layout(namespace)
    async with system.redis() as redis, system.tenant(namespace) as nc:
        newest = await _state(nc, DIRECT)  # before the end of the log, in which its record is by then
        position, _ = await Positions(nc).get(DIRECT)
        head = await Store(redis, namespace).head()
        page = await log.read(nc, head.sequence + 1, most=1)
        letters: Counter[str] = Counter()
        for block in range(head.index // BLOCK + 1):
            letters.update((await redis.get(layout.outcomes(block)) or b"").decode())
    behind = newest.sequence - (position.revision if position else 0) if newest else 0
    return len(page.messages) + page.pending, sum(letters[letter] for letter in OPEN), behind


async def _state(nc: Client, agent: str) -> StoredMessage | None:
    key = subjects.kv_key(subjects.STATE_BUCKET, agent)
    return await get_last(nc, subjects.kv_stream(subjects.STATE_BUCKET), key)  # of the leader


async def revisions(system: System, namespace: str) -> list[int]:
    """What the bucket keeps of the direct state."""
    stream, key = subjects.kv_stream(subjects.STATE_BUCKET), subjects.kv_key(subjects.STATE_BUCKET, DIRECT)
    async with system.tenant(namespace) as nc:
        return [each.sequence for each in await direct_get_page(nc, stream, key, 1)]


async def states(system: System, namespace: str) -> dict[str, dict[str, int]]:
    """The states as they are stored."""
    async with system.tenant(namespace) as nc:
        stored = {agent: await _state(nc, agent) for agent in (DIRECT, MEDIATED)}
    return {agent: json.loads(each.data) for agent, each in stored.items() if each is not None}


async def dead_letters(system: System, namespace: str) -> dict[str, str]:
    """The ids of all dead letters, with their reasons."""
    found: dict[str, str] = {}
    first = 1
    async with system.tenant(namespace) as nc:
        while page := await direct_get_page(nc, subjects.DLQ_STREAM, subjects.DLQ_SUBJECTS, first):
            for letter in page:
                found[letter.headers[headers.MESSAGE_ID]] = letter.headers[headers.DEAD_REASON]
            first = page[-1].sequence + 1
    return found


async def collect(system: System, namespace: str, folder: Path) -> Evidence:
    """Export and verify the audit, both as an operator would, and read the dead letters and the states."""
    export, place = folder / "audit.jsonl", str(system.layout.root)
    where = ("--folder", place, "--namespace", namespace)
    await asyncio.to_thread(mas, "audit", "export", str(export), *where)
    online = await asyncio.to_thread(mas, "audit", "verify", "--json", *where, check=False)
    offline = await asyncio.to_thread(
        mas, "audit", "verify", "--json", "--file", str(export), "--folder", place, check=False
    )
    reports = [json.loads(done.stdout) for done in (online, offline)]
    (folder / "verified.json").write_text(json.dumps(reports, indent=1))
    return Evidence(
        export=export,
        dead=await dead_letters(system, namespace),
        intact=all(report["intact"] for report in reports),
        findings=[finding for report in reports for finding in report["findings"]],
        entries=int(reports[0]["entries"]),
        states=await states(system, namespace),
        revisions=await revisions(system, namespace),
    )
