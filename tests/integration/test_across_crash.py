"""A worker dies at each point of a message between namespaces: nothing is lost, and both audits get there."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker_policy.audit import outcomes
from mas_nats import OutcomeUnknown, PermissionDenied
from tests.across import Desk
from tests.dying import died, dying
from tests.dying_worker import POINTS
from tests.load import Handling, audit_of, send_all
from tests.parts import Parts, parts
from tests.processes import kill
from tests.system import System, mas

SALES, BILLING = "sales", "billing"
REPLYING = [point for point in POINTS if point.startswith("reply")]
"""Points of a request's reply."""
SENDING = [point for point in POINTS if point not in (*REPLYING, "unrecorded")]


@pytest.fixture
async def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parts]:
    """Servers without a worker, and both namespaces."""
    monkeypatch.setattr(outcomes, "SILENT", 2.0)  # seconds after which a writer counts as dead
    monkeypatch.setattr(outcomes, "CLOCKS", 0.0)  # one machine, one clock: the server has just started
    async with parts(tmp_path, workers=0) as running:
        await running.namespace(["router"], {"router": [f"{BILLING}/desk"]}, name=SALES)
        await running.namespace(["desk"], {f"{SALES}/router": ["desk"]}, name=BILLING)
        yield running


@contextlib.asynccontextmanager
async def stage(up: Parts, point: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any, Any]]:
    """The worker that will die, the router and the desk."""
    async with (
        dying(up, point) as worker,
        agent(up, SALES, "router") as router,
        agent(up, BILLING, "desk") as desk,
    ):
        yield worker, router, desk


def agent(up: Parts, namespace: str, name: str) -> Any:
    return Desk(name, server_addr=up.broker.url, tls=up.tls(name, namespace))


async def told(up: Parts, namespace: str, message_id: str) -> list[dict[str, Any]]:
    audit = await audit_of(up, namespace, {message_id}, 30)
    return list(audit["decisions"][message_id])


def require_both(left: list[dict[str, Any]], came: list[dict[str, Any]]) -> None:
    """The sender's side knows of everything that the other side has, and knew it before."""
    assert left, "the sender's side does not know of it"
    assert min(each["at"] for each in left) <= min(each["at"] for each in came)
    decisions = {each["d"] for each in (*left, *came)}
    assert decisions - {"UNAVAILABLE"} == {"ALLOWED"}, "or a repetition that could not be compared yet"


def verify(up: Parts) -> None:
    for namespace in (SALES, BILLING):
        done = mas("audit", "verify", "--folder", str(up.layout.root), "--namespace", namespace, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("point", SENDING)
async def test_a_message_arrives_and_both_audits_know_it(up: Parts, point: str) -> None:
    async with stage(up, point) as (worker, router, desk):
        sending = asyncio.create_task(router.send(f"{BILLING}/desk", "note", {"n": 1}, id="m1"))
        await died(worker)
        assert not sending.done(), "nobody was told anything"
        await up.start_worker()
        assert await sending == "m1"
        async with asyncio.timeout(20):
            await desk.arrived.wait()
        assert {message.message_id for message in desk.got} == {"m1"}
        left, came = await told(up, SALES, "m1"), await told(up, BILLING, "m1")
    require_both(left, came)
    assert [each["outcome"] for each in left][-1] in ("a", "u")
    assert [each["outcome"] for each in came].count("h") >= 1
    if point != "nothing recorded":
        assert "?" in [each["outcome"] for each in left], "the dead worker's decision"
    verify(up)


@pytest.mark.parametrize("point", REPLYING)
async def test_a_reply_arrives_and_both_audits_know_it(up: Parts, point: str) -> None:
    async with stage(up, point) as (worker, router, desk):
        asking = asyncio.create_task(router.request(f"{BILLING}/desk", "ask", {"n": 1}, timeout=60))
        await died(worker)
        await up.start_worker()
        answer = await asking
        assert answer.data == {"heard": {"n": 1}}
        left = await told(up, BILLING, answer.message_id)
        came = await told(up, SALES, answer.message_id)
        assert len(desk.got) == 1, "the handler was not run again"
    require_both(left, came)
    verify(up)


async def test_a_sender_that_never_asks_again_is_unknown_on_its_side_only(up: Parts) -> None:
    async with dying(up, "own side recorded") as worker, agent(up, BILLING, "desk") as desk:
        async with agent(up, SALES, "router") as router:
            with pytest.raises(OutcomeUnknown):
                await router.send(f"{BILLING}/desk", "note", {"n": 1}, id="m1", timeout=2)
            await died(worker)
        await up.start_worker()
        [left] = await told(up, SALES, "m1")
        assert (left["d"], left["outcome"]) == ("ALLOWED", "?")
        with pytest.raises(PermissionDenied) as later:
            await desk.send("nobody", "marker", {})
        audit = await audit_of(up, BILLING, {later.value.message_id})
        assert "m1" not in audit["decisions"]
        assert not desk.got
    verify(up)


async def test_a_worker_that_hands_over_unrecorded_would_be_found(up: Parts) -> None:
    """The control: what the tests above would say."""
    async with stage(up, "unrecorded") as (_, router, desk):
        await router.send(f"{BILLING}/desk", "note", {"n": 1}, id="m1")
        await asyncio.wait_for(desk.arrived.wait(), 20)
        came = await told(up, BILLING, "m1")
        audit = await audit_of(up, SALES, set())
    with pytest.raises(AssertionError, match="does not know of it"):
        require_both(audit["decisions"].get("m1", []), came)


MESSAGES, CONCURRENCY, HARMS = 2_000, 64, 5


@pytest.mark.slow
async def test_workers_killed_at_random(tmp_path: Path) -> None:
    """Whatever dies: what was accepted is handled, and each of both audits has it and verifies."""
    victim = System.up(tmp_path / ".mas")
    try:
        await victim.namespace(["router"], {"router": [f"{BILLING}/desk"]}, name=SALES)
        await victim.namespace(["desk"], {f"{SALES}/router": ["desk"]}, name=BILLING)
        points = sorted(random.sample(range(100, MESSAGES - 100), HARMS))

        async def nemesis(accepted: int) -> None:
            while points and accepted >= points[0]:
                points.pop(0)
                kill(victim.broker.pid, random.choice(["w1", "w2"]))

        router = Handling("router", server_addr=victim.broker.url, tls=victim.tls("router", SALES))
        desk = Handling("desk", server_addr=victim.broker.url, tls=victim.tls("desk", BILLING))
        async with router, desk:
            accepted = await send_all(router, f"{BILLING}/desk", MESSAGES, CONCURRENCY, progress=nemesis)
            assert not points
            assert await desk.wait_handled(accepted, 60) == set()
            left = await audit_of(victim, SALES, accepted)
            came = await audit_of(victim, BILLING, accepted)
        for message_id in desk.handled:
            assert any(each["d"] == "ALLOWED" for each in left["decisions"][message_id])
            assert any(each["outcome"] == "h" for each in came["decisions"][message_id])
        for namespace in (SALES, BILLING):
            mas("audit", "verify", "--folder", str(victim.layout.root), "--namespace", namespace)
    finally:
        victim.down()
