"""Removing and renaming agents that have a backlog: nothing is lost, and everybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from broker_policy.dead_letters.inboxes import consumers, waiting
from broker_policy.dead_letters.letters import Letter, Wanted, letters
from broker_policy.jetstream import publish
from broker_policy.tenants import retire
from mas_nats import Agent, AgentMessage, IdentityRefused, RequestFailed
from tests.contract.broker import LIMITS
from tests.load import Handling, audit_of, audited
from tests.parts import Parts, parts
from tests.system import System, mas_json, wanted

AGENTS = ["asker", "old", "new"]
ALLOW = {"asker": ["old", "new"]}


class Stuck(Agent[dict[str, Any]]):
    """Takes messages and never finishes with them."""

    async def on_message(self, message: AgentMessage) -> None:
        await asyncio.Event().wait()


async def stuck(system: System, namespace: str, name: str = "old") -> Stuck:
    return Stuck(name, server_addr=system.broker.url, tls=system.tls(name, namespace))


def asker(system: System, namespace: str) -> Agent[dict[str, Any]]:
    return Agent("asker", server_addr=system.broker.url, tls=system.tls("asker", namespace))


async def dead(system: System, namespace: str, **which: Any) -> list[Letter]:
    async with system.tenant(namespace) as nc:
        return [letter async for letter in letters(nc, Wanted(**which))]


async def left(system: System, namespace: str) -> tuple[dict[str, int], set[str]]:
    async with system.tenant(namespace) as nc:
        return await waiting(nc), set(await consumers(nc))


async def test_the_backlog_of_a_removed_agent_is_dead_and_its_requesters_are_told(system: System) -> None:
    namespace = await system.namespace(AGENTS, ALLOW, limits=LIMITS)
    async with asker(system, namespace) as sender, AsyncExitStack() as stack:
        for _ in range(40):
            await sender.send("old", "note", {"n": 1})
        waiting_for = asyncio.create_task(sender.request("old", "ask", {}, timeout=30))
        there = await stuck(system, namespace)  # some are in flight when it is removed
        await there.start()
        stack.push_async_callback(there.stop, timeout=0.1)
        await asyncio.sleep(0.3)
        applied = await system.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
        assert (applied.removed, applied.unfinished) == (("old",), ())
        assert [(each.agent, each.buried) for each in applied.retired] == [("old", 41)]
        with pytest.raises(RequestFailed, match="AGENT_REMOVED"):
            await asyncio.wait_for(waiting_for, 10)
    found = await dead(system, namespace, agent="old", reason="AGENT_REMOVED")
    assert len(found) == 41
    assert await left(system, namespace) == ({}, {"asker", "new"})
    with pytest.raises(IdentityRefused):
        await (await stuck(system, namespace)).start()
    await audited(system, namespace, "request", 1)
    audit = await audited(system, namespace, "send", 40)
    sent = [each[0] for each in audit["decisions"].values() if each[0]["o"] in ("send", "request")]
    assert len(sent) == 41
    assert {each["outcome"] for each in sent} == {"d"}


async def test_a_renamed_agent_gets_what_its_old_name_left(system: System) -> None:
    namespace = await system.namespace(["asker", "old"], {"asker": ["old"]}, limits=LIMITS)
    async with asker(system, namespace) as sender:
        ids = {await sender.send("old", "note", {"n": number}) for number in range(30)}
        await system.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
        async with Handling("new", server_addr=system.broker.url, tls=system.tls("new", namespace)) as new:
            folder = ("--folder", str(system.layout.root), "--namespace", namespace)
            done = mas_json("dlq", "redrive", "--agent", "old", "--to", "new", "--by", "olga", *folder)
            assert (done["redriven"], done["kept"]) == (30, 0)
            assert await new.wait_handled(ids, timeout=20) == set()
            assert set(new.handled.values()) == {1}
    assert await dead(system, namespace) == []
    audit = await audited(system, namespace, "redrive", len(ids))
    for message_id in ids:
        lines = [
            (each["o"], each["t"], each.get("b", ""), each["outcome"])
            for each in audit["decisions"][message_id]
        ]
        assert sorted(lines) == [("redrive", "new", "olga", "h"), ("send", "old", "", "d")]
    verified = mas_json("audit", "verify", *folder)
    assert verified["intact"] is True


async def test_an_agent_that_comes_back_works_at_once(system: System) -> None:
    namespace = await system.namespace(AGENTS, ALLOW, limits=LIMITS)
    without = wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS)
    for _ in range(2):
        await system.apply(without)
        await system.apply(wanted(namespace, AGENTS, ALLOW, limits=LIMITS))
        async with (
            Handling("old", server_addr=system.broker.url, tls=system.tls("old", namespace)) as old,
            asker(system, namespace) as sender,
        ):
            message = await sender.send("old", "note", {})
            assert await old.wait_handled({message}, timeout=20) == set()


async def test_its_state_is_kept(system: System) -> None:
    namespace = await system.namespace(AGENTS, ALLOW, limits=LIMITS)
    options: dict[str, Any] = {"server_addr": system.broker.url, "tls": system.tls("old", namespace)}
    async with Handling("old", **options) as old:
        await old.update_state({"seen": 7})
    await system.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
    await system.apply(wanted(namespace, AGENTS, ALLOW, limits=LIMITS))
    async with Handling("old", **options) as old:
        assert old.state == {"seen": 7}


async def test_what_was_handled_last_is_not_called_unknown(system: System) -> None:
    """Its consumer, which says what was delivered, is gone by the time the audit looks."""
    namespace = await system.namespace(AGENTS, ALLOW, limits=LIMITS)
    async with asker(system, namespace) as sender:
        async with Handling("old", server_addr=system.broker.url, tls=system.tls("old", namespace)) as old:
            ids = {await sender.send("old", "note", {"n": number}) for number in range(20)}
            assert await old.wait_handled(ids, timeout=20) == set()
        await system.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
    audit = await audit_of(system, namespace, ids)
    assert {each["outcome"] for key in ids for each in audit["decisions"][key]} == {"h"}


# -- interrupted, and crossed by others ---------------------------------------------------------------------
@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path, workers=0) as running:
        yield running


async def backlog(up: Parts, count: int = 5) -> str:
    namespace = await up.namespace(AGENTS, ALLOW, limits=LIMITS)
    async with asker(up, namespace) as sender:
        for number in range(count):
            await sender.send("old", "note", {"n": number})
    return namespace


async def test_without_a_worker_it_stays_and_the_next_apply_finishes(up: Parts) -> None:
    worker = await up.start_worker()
    namespace = await backlog(up)
    await up.stop_worker(worker)
    without = wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS)
    applied = await up.apply(without)
    assert [each.agent for each in applied.unfinished] == ["old"]
    assert "no policy worker" in applied.unfinished[0].left
    assert await left(up, namespace) == ({"old": 5}, {"asker", "new", "old"})
    await up.start_worker()
    applied = await up.apply(without)
    assert (applied.changed, applied.unfinished) == (False, ())
    assert await left(up, namespace) == ({}, {"asker", "new"})
    assert len(await dead(up, namespace)) == 5


@pytest.mark.parametrize("step", ["retire_agent", "_clear", "_put_right"])
async def test_an_apply_that_died_is_finished_by_the_next(
    up: Parts, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await up.start_worker()
    namespace = await backlog(up)
    without = wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS)

    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(retire.TenantController if step == "retire_agent" else retire._Retirement, step, die)
        with pytest.raises(KeyboardInterrupt):
            await up.apply(without)
    await up.apply(without)
    assert await left(up, namespace) == ({}, {"asker", "new"})
    assert len(await dead(up, namespace)) == 5


async def test_a_message_that_comes_after_the_consumer_is_gone_is_found(up: Parts) -> None:
    """Committed by a worker that judged it before the agent was removed; here by hand."""
    await up.start_worker(sweep_every=0.3)
    namespace = await up.namespace(AGENTS, ALLOW, limits=LIMITS)
    await up.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
    async with up.tenant(namespace) as nc:
        await publish(nc, "mas.inbox.old", b"{}", {"Mas-Sender": "asker"})
        async with asyncio.timeout(20):
            while not await dead(up, namespace, reason="AGENT_REMOVED"):
                await asyncio.sleep(0.1)
    assert await left(up, namespace) == ({}, {"asker", "new"})


@pytest.mark.parametrize("moment", ["_require_absent", "_backlog", "_put_right"])
async def test_an_agent_that_is_put_back_meanwhile_has_all_it_needs(
    up: Parts, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another apply crosses at each of the steps; each time it is complete before the first goes on."""
    await up.start_worker()
    namespace = await up.namespace(AGENTS, ALLOW, limits=LIMITS)
    genuine = getattr(retire._Retirement, moment)
    crossed = False

    async def cross(self: retire._Retirement) -> Any:
        nonlocal crossed
        if moment == "_put_right":
            result = await genuine(self)
        if not crossed:
            crossed = True
            await up.apply(wanted(namespace, AGENTS, ALLOW, limits=LIMITS))
        return result if moment == "_put_right" else await genuine(self)

    monkeypatch.setattr(retire._Retirement, moment, cross)
    await up.apply(wanted(namespace, ["asker", "new"], {"asker": ["new"]}, limits=LIMITS))
    assert crossed
    async with (
        Handling("old", server_addr=up.broker.url, tls=up.tls("old", namespace)) as old,
        asker(up, namespace) as sender,
    ):
        message = await sender.send("old", "note", {})
        assert await old.wait_handled({message}, timeout=20) == set()


async def test_a_namespace_whose_policy_was_deleted_is_put_back(up: Parts) -> None:
    await up.start_worker()
    namespace = await up.namespace(AGENTS, ALLOW, limits=LIMITS)
    async with up.control() as (_, store):
        await publish(store._nc, f"$KV.policy.ns.{namespace}", b"", {"KV-Operation": "DEL"})
        assert await store.get(namespace) is None
    applied = await up.apply(wanted(namespace, AGENTS, ALLOW, limits=LIMITS))
    assert applied.changed
    async with asker(up, namespace) as sender:
        await sender.send("old", "note", {})
