"""What workers do by themselves: without the supervisor of ``mas up`` nobody else is there to do it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker_policy import serving
from broker_policy.audit.entry import short_fingerprint
from broker_policy.audit.log import read
from broker_policy.audit.projector import Projector
from broker_policy.audit.store import Store
from broker_policy.jetstream import stream_info
from broker_policy.serving import Namespaces
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.streams import AUDIT_GUARD
from mas_nats import Agent, AgentMessage, MasError
from mas_nats.policy.document import Document
from mas_nats.policy.table import Table
from mas_nats.resilient import ResilientClient
from mas_nats.wire import subjects
from tests.load import Handling, audit_of, send_all
from tests.parts import Parts, parts
from tests.system import mas, wanted


class Desk(Agent[dict[str, object]]):
    """Answers what it is asked."""

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("answer", {"n": message.data["n"]})


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(tmp_path) as running:
        yield running


async def eventually(attempt, timeout: float = 20) -> object:
    """What ``attempt`` returns as soon as it does not raise."""
    async with asyncio.timeout(timeout):
        while True:
            try:
                return await attempt()
            except (MasError, LookupError):
                await asyncio.sleep(0.1)


async def whole(asker: Agent, desk: Desk) -> None:
    """Every stream of the tenant is needed for this."""
    answer = await asker.request("desk", "ask", {"n": 1}, timeout=3)
    assert answer.data == {"n": 1}
    await desk.refresh_state()
    await desk.update_state({"seen": 1})
    (found,) = await asker.discover(["qa"])
    assert found.agent_id == "desk"


async def pair(up: Parts, namespace: str, stack: AsyncExitStack) -> tuple[Agent, Desk]:
    asker = Agent("asker", server_addr=up.broker.url, tls=up.tls("asker", namespace))
    tls = up.tls("desk", namespace)
    desk = Desk("desk", capabilities=["qa"], server_addr=up.broker.url, tls=tls)
    return await stack.enter_async_context(asker), await stack.enter_async_context(desk)


async def test_streams_in_memory_are_made_again_after_a_restart_of_the_server(up: Parts) -> None:
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await whole(asker, desk)
        up.nats.kill()
        await up.nats.start()  # and nobody provisions
        await eventually(lambda: whole(asker, desk))


async def test_a_worker_that_starts_after_such_a_restart_makes_them_too(up: Parts) -> None:
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    await up.stop_worker(up.workers[0])
    up.nats.kill()
    await up.nats.start()
    await up.start_worker()
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await eventually(lambda: whole(asker, desk))


async def test_what_protects_the_log_is_made_again(up: Parts) -> None:
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    async with up.tenant(namespace) as tenant:
        js = tenant.jetstream()
        for consumer in (AUDIT_GUARD, "desk"):
            await js.delete_consumer(subjects.INBOX_STREAM, consumer)
        await up.stop_worker(up.workers[0])
        await up.start_worker()
        names = {info.name for info in await js.consumers_info(subjects.INBOX_STREAM)}
        assert names == {AUDIT_GUARD, "asker", "desk"}


async def test_what_is_removed_by_hand_is_made_again(up: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """While everything runs: nobody reconnects, and nobody is told."""
    monkeypatch.setattr(serving, "_KEEP_WHOLE", 0.2)
    namespace = await up.namespace(["asker", "desk", "idle"], {"asker": ["desk", "idle"]})
    await up.stop_worker(up.workers[0])
    await up.start_worker()
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await whole(asker, desk)
        async with up.tenant(namespace) as tenant:
            js = tenant.jetstream()
            for consumer in (AUDIT_GUARD, "desk", "idle"):
                await js.delete_consumer(subjects.INBOX_STREAM, consumer)
            for bucket in (subjects.REGISTRY_BUCKET, subjects.LEASES_BUCKET):
                await js.delete_stream(subjects.kv_stream(bucket))
            await asker.send("idle", "note", {}, delay=0.5)  # whoever releases needs the lease
            await eventually(lambda: whole(asker, desk))
            await nothing_delayed(tenant)
            # An agent that was removed has not lost its consumer.
            await up.apply(wanted(namespace, ["asker", "desk"], {"asker": ["desk"]}))
            await asyncio.sleep(1)  # several looks
            names = {info.name for info in await js.consumers_info(subjects.INBOX_STREAM)}
            assert names == {AUDIT_GUARD, "asker", "desk"}


async def test_a_stream_that_is_missing_on_disk_is_said_before_it_is_made_again(up: Parts) -> None:
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    await up.stop_worker(up.workers[0])  # it would make them again
    assert await up.provision() == []
    async with up.tenant(namespace) as tenant:
        js = tenant.jetstream()
        for bucket in (subjects.STATE_BUCKET, subjects.REGISTRY_BUCKET):  # the second lives in memory
            await js.delete_stream(subjects.kv_stream(bucket))
        await js.delete_stream(subjects.DLQ_STREAM)
    endpoint = up.broker.connection(up.layout, "controller")
    control = await connect_control_admin(endpoint, up.material.controller)
    await control.jetstream().delete_stream(subjects.CHECKPOINTS_STREAM)
    await control.close()
    of_control, of_tenant = await up.provision()
    assert "operator's account had no CHECKPOINTS, though" in of_control
    assert f"namespace {namespace} had no DLQ, KV_state, though" in of_tenant
    assert await up.provision() == []
    await up.nats.stop()
    await up.nats.start()
    assert await up.provision() == []


async def test_a_namespace_without_policy_is_let_go_and_taken_up_again(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_KEEP_WHOLE", 0.3)
    agents, allow = ["asker", "desk", "idle"], {"asker": ["desk", "idle"]}
    other, namespace = await up.namespace(agents, allow), await up.namespace(agents, allow)
    await up.stop_worker(up.workers[0])
    for _ in range(2):
        await up.start_worker()
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await whole(asker, desk)
        waiting = await asker.send("idle", "note", {"n": 1})
        await asker.send("idle", "note", {"n": 2}, delay=3600)
    async with up.tenant(namespace) as tenant, up.redis() as redis:
        await up.without_policy([namespace])
        await served_by_nobody(up, namespace)
        assert await workers_in(up, namespace) == 0
        head = await Store(redis, namespace).head()
        assert (await read(tenant, head.sequence + 1, most=1)).messages == [], (
            "all that was decided is in the chain"
        )
        assert (await stream_info(tenant, subjects.DELAYED_STREAM))["state"]["messages"] == 1
    async with AsyncExitStack() as stack:
        await whole(*await pair(up, other, stack))
    assert await workers_in(up, other) == 2
    await up.apply(wanted(namespace, agents, allow))
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await eventually(lambda: whole(asker, desk))
        idle = Handling("idle", server_addr=up.broker.url, tls=up.tls("idle", namespace))
        await stack.enter_async_context(idle)
        assert not await idle.wait_handled({waiting}, 20)
    assert all(not each._broken.done() for each in up.workers)
    await intact(up, namespace)


async def test_a_policy_that_comes_back_at_once_is_followed(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a worker lets go it takes no call, and begins anew behind it."""
    monkeypatch.setattr(serving, "_KEEP_WHOLE", 0.1)
    agents, allow = ["asker", "desk"], {"asker": ["desk"]}
    namespace = await up.namespace(agents, allow)
    await up.stop_worker(up.workers[0])
    served = await up.start_worker()
    for _ in range(5):
        await up.without_policy([namespace])
        async with asyncio.timeout(20):
            while namespace in served._namespaces:
                await asyncio.sleep(0.01)
        await up.apply(wanted(namespace, agents, allow))
        async with AsyncExitStack() as stack:
            asker, desk = await pair(up, namespace, stack)
            await eventually(lambda asker=asker, desk=desk: whole(asker, desk))
    assert not served._broken.done()
    await intact(up, namespace)


async def test_a_policy_that_comes_back_does_not_wait_for_the_audit(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is slow, or a newer version has to project: the next projector does what is left."""

    async def never(_: Projector) -> bool:
        return False

    monkeypatch.setattr(serving, "_KEEP_WHOLE", 0.1)
    monkeypatch.setattr(Projector, "at_rest", never)
    agents, allow = ["asker", "desk"], {"asker": ["desk"]}
    namespace = await up.namespace(agents, allow)
    await up.stop_worker(up.workers[0])
    served = await up.start_worker()
    await up.without_policy([namespace])
    async with asyncio.timeout(20):
        while namespace not in served._namespaces._leaving:
            await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    assert namespace in served._namespaces._leaving
    await up.apply(wanted(namespace, agents, allow))
    async with AsyncExitStack() as stack:
        asker, desk = await pair(up, namespace, stack)
        await eventually(lambda: whole(asker, desk))
    await intact(up, namespace)


async def test_who_is_let_in_before_its_namespace_is_served_is_audited(
    up: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents, allow = ["asker", "desk"], {"asker": ["desk"]}
    free, start = asyncio.Event(), Namespaces._start

    async def late(self: Namespaces, table: Table) -> None:
        await free.wait()
        await start(self, table)

    monkeypatch.setattr(Namespaces, "_start", late)
    namespace = await up.namespace(agents, allow)
    asker = Agent("asker", server_addr=up.broker.url, tls=up.tls("asker", namespace))
    starting = asyncio.create_task(eventually(asker.start))
    async with asyncio.timeout(20):
        while not up.workers[0]._namespaces._unheard:
            await asyncio.sleep(0.01)
    free.set()
    await starting
    async with Handling("desk", server_addr=up.broker.url, tls=up.tls("desk", namespace)) as desk:
        sent = await eventually(lambda: asker.send("desk", "note", {}))
        assert not await desk.wait_handled({sent}, 20)
    await asker.stop()
    service = up.workers[0]._namespaces[namespace].service
    fingerprint = short_fingerprint(service._registry.fingerprint("asker"))
    assert fingerprint
    audit = await audit_of(up, namespace, {sent})
    assert [each["x"] for each in audit["decisions"][sent]] == [fingerprint]
    connected = [each for each in audit["entries"] if each["k"] == "d" and each["o"] == "connect"]
    assert ("asker", fingerprint) in [(each["f"], each["x"]) for each in connected]


async def served_by_nobody(up: Parts, namespace: str) -> None:
    async with asyncio.timeout(60):
        while any(namespace in (*each._namespaces, *each._namespaces._leaving) for each in up.workers):
            await asyncio.sleep(0.05)


async def workers_in(up: Parts, namespace: str) -> int:
    """How many workers have a connection into its account."""
    async with up.control() as (controller, _):
        there = await controller._connections({"state": 0})
    return sum(connection.get("name", "").endswith(f"-{namespace}") for _, connection in there)


async def intact(up: Parts, namespace: str) -> None:
    where = ("--folder", str(up.layout.root), "--namespace", namespace)
    await asyncio.to_thread(mas, "audit", "verify", *where)


async def nothing_delayed(tenant: ResilientClient) -> None:
    """Return when every delayed message was released."""
    async with asyncio.timeout(20):
        while (await stream_info(tenant, subjects.DELAYED_STREAM))["state"]["messages"]:
            await asyncio.sleep(0.1)


async def test_a_namespace_that_cannot_be_served_holds_up_no_other(up: Parts) -> None:
    """Its policy came before its account; a worker goes on with the others and serves it when it can."""
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    worker = up.workers[0]
    async with up.control() as (controller, store):
        unknown = controller._keys.account("early").public
        await store.wait_confirmed(await store.put(Document(namespace="early", account=unknown), expected=0))
        async with AsyncExitStack() as stack:
            await whole(*await pair(up, namespace, stack))
        assert not worker._follower.stale
        assert "early" not in worker._namespaces
        connections = len(await controller._connections({"state": 0}))
        for revision in (1, 2, 3):  # each change of any policy is one more occasion to serve it twice
            stored = await store.get("early")
            assert stored is not None
            operators = tuple(f"o{number}" for number in range(revision))
            changed = stored.document.model_copy(update={"operators": operators})
            await store.wait_confirmed(await store.put(changed, expected=stored.sequence))
        assert len(worker._namespaces._starting) == 1
        await controller.ensure_tenant("early", stored.document.limits)
        async with asyncio.timeout(10):
            while "early" not in worker._namespaces:
                await asyncio.sleep(0.05)
        assert len(await controller._connections({"state": 0})) <= connections + 2
    assert worker._namespaces._starting == {}


async def test_a_worker_sees_since_when_the_log_knows_ids(up: Parts) -> None:
    namespace = await up.namespace(["asker"], {})
    worker = up.workers[0]
    nc = worker._namespaces[namespace].nc
    first = await worker._namespaces._remember(nc)
    assert 0 < time.time() - first.since < 60
    up.nats.kill()
    restarted = time.time()
    await up.nats.start()
    async with asyncio.timeout(10):
        while not nc.is_connected:
            await asyncio.sleep(0.05)
    assert (await worker._namespaces._remember(nc)).since >= restarted - 1


async def test_apply_sees_the_workers_again_after_such_a_restart(up: Parts) -> None:
    namespace = await up.namespace(["asker", "desk"], {"asker": ["desk"]})
    up.nats.kill()
    await up.nats.start()
    worker = up.workers[0]
    async with asyncio.timeout(10):
        while worker._follower.stale:
            await asyncio.sleep(0.05)
    applied = await up.apply(wanted(namespace, ["asker", "desk", "third"], {"asker": ["third"]}))
    async with asyncio.timeout(5):
        while worker._follower.revision != applied.revision:
            await asyncio.sleep(0.05)
    assert not worker._follower._unseen


async def test_a_server_that_stays_away_does_not_fill_the_log_of_workers(
    up: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """Each connection tries again many times a second, and says once what comes of it."""
    with caplog.at_level(logging.INFO, "broker_policy.tenants.connect"):
        up.nats.kill()
        await asyncio.sleep(3)
        messages = [record.getMessage() for record in caplog.records if "connection " in record.getMessage()]
        connections = {message.split(": ")[0] for message in messages}
        assert any("Connect call failed" in message for message in messages)  # the control
        assert len(messages) <= 10 * len(connections)
        await up.nats.start()
        async with asyncio.timeout(20):
            while "connected again" not in caplog.text:
                await asyncio.sleep(0.1)


async def test_nothing_accepted_is_lost_when_the_server_is_killed_under_load(up: Parts) -> None:
    """kill -9 in the middle of batches; the answers that get lost on the way are told again."""
    await up.start_worker()
    namespace = await up.namespace(["sender", "receiver"], {"sender": ["receiver"]})
    async with AsyncExitStack() as stack:
        sender, receiver = [
            await stack.enter_async_context(
                Handling(name, server_addr=up.broker.url, tls=up.tls(name, namespace))
            )
            for name in ("sender", "receiver")
        ]
        killed = 0

        async def kill(accepted: int) -> None:
            nonlocal killed
            if accepted > 300 * (killed + 1) and killed < 3:
                killed += 1
                up.nats.kill()
                await up.nats.start()

        accepted = await send_all(sender, "receiver", 1_500, 64, progress=kill)
        assert await receiver.wait_handled(accepted, 30) == set()
    assert killed == 3
