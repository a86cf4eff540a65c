"""Direct state: written by the agent itself, audited after the fact, each change once whoever dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest

from broker_policy.audit.state_marks import DIRECT_STATE, STATE_GAP
from broker_policy.audit.store import Store
from broker_policy.direct_state.changes import History
from broker_policy.direct_state.positions import Position, Positions
from broker_policy.jetstream import direct_get, last_by_subject, publish
from broker_policy.tenants.controller import TenantController
from broker_policy.tenants.streams import STATE_HISTORY
from mas_nats import Agent, StateConflict, StateCorrupt, StateInvalid
from mas_nats.manifest.wanted import WantedAgent
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.state_mode import StateMode
from tests.parts import Parts, parts
from tests.processes import kill
from tests.system import System, mas, wanted

DIRECT = {"d": WantedAgent(state=StateMode.DIRECT), "m": WantedAgent()}
MEDIATED = {"d": WantedAgent(), "m": WantedAgent()}


class Counting(Agent[dict[str, Any]]):
    pass


def agent(system: System, namespace: str, name: str = "d") -> Counting:
    return Counting(name, server_addr=system.broker.url, tls=system.tls(name, namespace), receive=False)


async def count(counting: Counting, times: int) -> list[int]:
    """Update the state so often; the revisions."""
    revisions = []
    for _ in range(times):
        await counting.update_state({"n": int(counting.state.get("n", 0)) + 1})
        revisions.append(counting._running.state._revision)  # type: ignore[union-attr]
    return revisions


async def entries(system: System, namespace: str) -> list[dict[str, Any]]:
    """What the audit says about state, in order."""
    async with system.redis() as redis:
        found = [stored.entry() async for stored in Store(redis, namespace).entries()]
    return [entry for entry in found if entry["k"] == "d" and entry["o"] == "state"]


async def audited(
    system: System, namespace: str, revisions: Sequence[int], timeout: float = 20.0
) -> list[dict[str, Any]]:
    """Wait until the audit has all of ``revisions``."""
    async with asyncio.timeout(timeout):
        while True:
            found = await entries(system, namespace)
            if {str(each) for each in revisions} <= {e["id"] for e in found if e["r"] == DIRECT_STATE}:
                return found
            await asyncio.sleep(0.1)


def once(found: list[dict[str, Any]], revisions: Sequence[int]) -> None:
    """Each of ``revisions``, in their order, once, and nothing else."""
    assert [e["id"] for e in found if e["r"] == DIRECT_STATE] == [str(each) for each in revisions]
    assert [e for e in found if e["r"] == STATE_GAP] == []


async def test_each_change_is_audited_once(system: System):
    namespace = await system.namespace(DIRECT, {})
    async with agent(system, namespace) as direct, agent(system, namespace, "m") as mediated:
        revisions, _ = await asyncio.gather(count(direct, 150), count(mediated, 20))
        await direct.reset_state()
        revisions.append(direct._running.state._revision)  # type: ignore[union-attr]
    found = await audited(system, namespace, revisions)
    once(found, revisions)
    first = next(e for e in found if e["r"] == DIRECT_STATE)
    assert (first["f"], first["t"], first["d"], first["z"]) == ("d", "d", "ALLOWED", len(b'{"n":1}'))
    assert first["c"]
    assert first["x"]
    assert Counter(e["r"] for e in found if e["f"] == "m") == {"own_state": 20}


async def follows(counting: Counting, state: StateMode) -> None:
    """Wait until the agent knows of the change."""
    async with asyncio.timeout(5):
        while counting._running.session.terms.state is not state:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)


async def by_itself(client: ResilientClient, revisions: Sequence[int]) -> list[int]:
    """Those of ``revisions`` (all still kept) that the agent wrote itself."""
    stored = [await direct_get(client, subjects.kv_stream(subjects.STATE_BUCKET), each) for each in revisions]
    return [each.sequence for each in stored if each is not None and headers.STATE_MAC not in each.headers]


async def test_the_way_is_changed_live(system: System):
    namespace = await system.namespace(MEDIATED, {})
    async with agent(system, namespace) as one, agent(system, namespace) as other:
        async with system.tenant(namespace) as client:
            await count(one, 70)
            await system.apply(wanted(namespace, DIRECT, {}))
            await asyncio.gather(follows(one, StateMode.DIRECT), follows(other, StateMode.DIRECT))
            await other.refresh_state()
            direct = await count(other, 5)
            await one.refresh_state()
            direct += await count(one, 70)
            applying = asyncio.ensure_future(system.apply(wanted(namespace, MEDIATED, {})))
            meanwhile: list[int] = []
            while not applying.done():
                meanwhile += await by_itself(client, await count(one, 1))
            await applying
            await count(one, 5)
        assert one.state["n"] > 150
    once(await audited(system, namespace, [*direct, *meanwhile]), [*direct, *meanwhile])


async def test_a_tight_manifest_limit_holds_for_direct_state_too(system: System):
    namespace = await system.namespace(DIRECT, {}, limits=Limits(max_state=1000))
    async with agent(system, namespace) as direct:
        with pytest.raises(StateInvalid, match="the limit is 1000"):
            await direct.update_state({"n": "x" * 1000})


@pytest.fixture
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System.up(tmp_path_factory.mktemp("victim") / ".mas")
    yield running
    running.down()


async def holder(system: System, namespace: str) -> str:
    """The worker that audits at the moment."""
    async with system.tenant(namespace) as client:
        stream = subjects.kv_stream(subjects.AUDITED_BUCKET)
        stored = await last_by_subject(client, stream, subjects.kv_key(subjects.AUDITED_BUCKET, "d"))
    worker: str = orjson.loads(stored.data)["worker"] if stored else ""
    return worker


def process_of(system: System, worker: str) -> str:
    """The name of the process that is, or was, ``worker``."""
    return next(
        n for n in ("w1", "w2") if f"({worker.partition('x')[0]})" in system.layout.log(n).read_text()
    )


async def serving(system: System, starts: int) -> None:
    """Wait until so many starts of workers have come to their end: with none left nobody hears anything."""
    async with asyncio.timeout(30):
        while sum(system.layout.log(name).read_text().count(" serves ") for name in ("w1", "w2")) < starts:
            await asyncio.sleep(0.05)


async def test_a_killed_worker_leaves_no_gap_and_no_double(victim: System):
    namespace = await victim.namespace(DIRECT, {})
    revisions: list[int] = []
    async with agent(victim, namespace) as direct:
        for killed in range(4):
            await serving(victim, 2 + killed)
            revisions += await count(direct, 100)
            async with asyncio.timeout(5):
                while not (worker := await holder(victim, namespace)):
                    await count_and_wait(direct, revisions)
            kill(victim.broker.pid, process_of(victim, worker))
            revisions += await count(direct, 150)
            async with asyncio.timeout(20):
                while await holder(victim, namespace) == worker:
                    await count_and_wait(direct, revisions)
    found = await audited(victim, namespace, revisions, timeout=30)
    once(found, revisions)
    verified = mas("audit", "verify", "--folder", str(victim.layout.root), "--namespace", namespace)
    assert verified.returncode == 0, verified.stdout


async def count_and_wait(direct: Counting, revisions: list[int]) -> None:
    revisions += await count(direct, 1)
    await asyncio.sleep(0.05)


# -- with the workers in this process ------------------------------------------------------------------
@pytest.fixture
async def one_worker(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path) as up:
        yield up


@asynccontextmanager
async def absent(up: Parts) -> AsyncIterator[None]:
    """No worker is there."""
    await up.stop_worker(up.workers[0])
    yield
    await up.start_worker()


async def test_what_is_recorded_twice_is_entered_once(one_worker: Parts):
    """As after a worker that died between its record and the position; ids are looked up nowhere else."""
    up = one_worker
    namespace = await up.namespace(DIRECT, {})
    async with agent(up, namespace) as direct, up.tenant(namespace) as client:
        revisions = await count(direct, 20)
        await audited(up, namespace, revisions)
        async with absent(up):
            key = subjects.kv_key(subjects.AUDITED_BUCKET, "d")
            await publish(client, key, Position(revisions[4], "gone").encode(), {})
        revisions += await count(direct, 1)
        found = await audited(up, namespace, revisions)
        records = [each for each in found if each["id"] == str(revisions[-1])]
    once(found, revisions)
    assert records[0]["p"] == len(revisions) - 1 - 5  # the others were recorded before it, again


async def test_what_is_no_longer_direct_is_followed_to_its_end(
    one_worker: Parts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("broker_policy.direct_state.follower._LET_GO_AFTER", 0.3)
    up = one_worker
    namespace = await up.namespace(DIRECT, {})
    async with agent(up, namespace) as one, up.tenant(namespace) as client:
        revisions = await count(one, 70)
        await up.apply(wanted(namespace, MEDIATED, {}))
        await count(one, 70)
        async with asyncio.timeout(10):
            while await Positions(client).all():
                await asyncio.sleep(0.05)
        await up.apply(wanted(namespace, DIRECT, {}))
        await follows(one, StateMode.DIRECT)
        revisions += await count(one, 5)
        once(await audited(up, namespace, revisions), revisions)


async def test_a_connection_older_than_the_permission_is_renewed(
    one_worker: Parts, monkeypatch: pytest.MonkeyPatch
):
    """As after an apply that died before it disconnected the agent."""
    up = one_worker
    namespace = await up.namespace(MEDIATED, {})
    async with agent(up, namespace) as one:
        await count(one, 1)
        monkeypatch.setattr(TenantController, "kick_account", AsyncMock(return_value=0))
        await up.apply(wanted(namespace, DIRECT, {}))
        await one._running.session.hello()  # type: ignore[union-attr]
        revisions = await count(one, 3)
        once(await audited(up, namespace, revisions), revisions)


async def test_what_is_on_its_way_is_not_taken_for_missed(one_worker: Parts, monkeypatch: pytest.MonkeyPatch):
    """It would be read from the bucket, revision by revision, however often somebody looks."""
    looked, newest = 0, History.newest

    async def counted(history: History, agent: str) -> int:
        nonlocal looked
        looked += 1
        return await newest(history, agent)

    monkeypatch.setattr(History, "newest", counted)
    monkeypatch.setattr("broker_policy.direct_state.follower._LOOK_AGAIN", 0.0)
    up = one_worker
    namespace = await up.namespace(DIRECT, {})
    async with agent(up, namespace) as direct:
        revisions = await count(direct, 10)
        await audited(up, namespace, revisions)
        followed = up.workers[0]._namespaces[namespace].service._direct_states._followed["d"]
        before, looked = followed._missed, 0
        async with asyncio.timeout(30):
            while looked <= 40:  # however fast it is
                revisions += await count(direct, 100)
        assert followed._missed - before <= looked / 20  # the answer can overtake what it is about
        assert looked > 20
        once(await audited(up, namespace, revisions), revisions)


@pytest.mark.parametrize("lost", ["calls", "changes"])
async def test_one_of_a_workers_two_connections_is_lost(one_worker: Parts, lost: str):
    """While the agent goes on: what was not heard, and not kept until it was read, is named."""
    up = one_worker
    namespace = await up.namespace(DIRECT, {})
    async with agent(up, namespace) as direct:
        revisions = await count(direct, 10)
        await audited(up, namespace, revisions)
        served = up.workers[0]._namespaces[namespace]
        hearing = served.service._direct_states._hearing._nc
        assert hearing is not None
        assert hearing is not served.nc
        for _ in range(4):
            revisions += await count(direct, 100)
            connection = served.nc if lost == "calls" else hearing
            async with asyncio.timeout(10):
                while not connection.is_connected:
                    await asyncio.sleep(0.02)
            connection._transport._io_writer.transport.abort()
        revisions += await count(direct, 100)
        assert (hearing.stats["reconnects"] > 0) == (lost == "changes")
        found = await audited(up, namespace, revisions[-1:])
    audit = [int(e["id"]) for e in found if e["r"] == DIRECT_STATE]
    spans = [tuple(map(int, e["id"].split("-"))) for e in found if e["r"] == STATE_GAP]
    named = {each for low, high in spans for each in range(low + 1, high)}
    assert audit == sorted(set(audit))
    assert set(audit) | named >= set(revisions)
    assert not set(audit) & named


async def test_what_nobody_saw_is_named_as_a_gap(one_worker: Parts):
    up = one_worker
    namespace = await up.namespace(DIRECT, {})
    async with agent(up, namespace) as direct:
        before = await count(direct, 3)
        await audited(up, namespace, before)
        async with absent(up):
            few = await count(direct, STATE_HISTORY - 1)
        await audited(up, namespace, few)
        async with absent(up):
            many = await count(direct, 100)
        kept = many[-STATE_HISTORY:]
        await audited(up, namespace, kept)
        after = await count(direct, 3)
        found = await audited(up, namespace, [*kept, *after])
    seen = [*before, *few, *kept, *after]
    assert [e["id"] for e in found if e["r"] == DIRECT_STATE] == [str(each) for each in seen]
    (gap,) = [e for e in found if e["r"] == STATE_GAP]
    assert (gap["id"], gap["d"], gap["f"]) == (f"{few[-1]}-{kept[0]}", "ALERT", "d")


async def test_an_agent_cannot_make_its_writes_look_audited(one_worker: Parts):
    """It has its own old states, with the marks that workers put on them, and may write any header."""
    up = one_worker
    namespace = await up.namespace(MEDIATED, {})
    key = subjects.kv_key(subjects.STATE_BUCKET, "d")
    stream = subjects.kv_stream(subjects.STATE_BUCKET)
    async with agent(up, namespace) as mediated:
        await count(mediated, 3)
    async with up.tenant(namespace) as client:
        stored = await last_by_subject(client, stream, key)
        await up.apply(wanted(namespace, DIRECT, {}))
        assert stored is not None
        mark, revision = stored.headers[headers.STATE_MAC], stored.sequence
        expected = headers.EXPECTED_LAST_SUBJECT_SEQUENCE
        old = stored.headers[expected]
        hostile: list[dict[str, str]] = [
            {headers.STATE_MAC: mark},
            {headers.STATE_MAC: mark, headers.AUDIT: stored.headers[headers.AUDIT]},
            {headers.STATE_MAC: mark, headers.STORED_PREVIOUS: old},
            {headers.STATE_MAC: mark, headers.STORED_PREVIOUS: old, headers.STORED_SEQUENCE: str(revision)},
            {headers.STATE_MAC: mark, expected: "0", f"{expected}-Subject": "$KV.state.nobody"},
            {headers.STORED_SEQUENCE: "9999", headers.STORED_PREVIOUS: str(revision)},
            {headers.STATUS: "404", headers.STORED_SUBJECT: "mas.x", headers.STORED_TIME: "never"},
            {headers.KV_OPERATION: "PURGE"},
        ]
        written = [(await publish(client, key, stored.data, fields)).sequence for fields in hostile]
        written.append((await publish(client, key, b"no JSON", {})).sequence)
        once(await audited(up, namespace, written), written)
        # The same when they are not heard but read, by a worker that starts later.
        async with absent(up):
            unheard = [(await publish(client, key, stored.data, fields)).sequence for fields in hostile]
        once(await audited(up, namespace, [*written, *unheard]), [*written, *unheard])


@pytest.mark.parametrize("state", StateMode)
async def test_what_is_no_state_is_corrupt_either_way(system: System, state: StateMode):
    namespace = await system.namespace({"d": WantedAgent(state=state)}, {})
    async with agent(system, namespace) as counting, system.tenant(namespace) as client:
        for body in (b"no JSON", b"[1]", b"\xff"):
            await publish(client, subjects.kv_key(subjects.STATE_BUCKET, "d"), body, {})
            with pytest.raises(StateCorrupt, match="no JSON object"):
                await counting.refresh_state()
            with pytest.raises(StateConflict):
                await counting.update_state({"n": 1})
            assert await counting.reset_state() == {}
            await counting.update_state({"n": 2})
