"""``mas doctor`` on a running broker, whole and with one part after another broken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from broker_policy.audit.checkpoint_stream import CheckpointStream
from broker_policy.audit.store import Store
from broker_policy.doctor import running
from broker_policy.doctor.check import Check, Status
from broker_policy.embedded.halt import halt
from broker_policy.jetstream import publish
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.connect import connect_control_admin
from broker_policy.tenants.streams import AUDIT_GUARD
from mas_nats.policy.governance import AuditSink, Governance
from mas_nats.wire import subjects
from tests.processes import children
from tests.system import System, mas, mas_json, new_namespace, wanted


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A broker of this module's own, since it is broken here."""
    made = System.up(tmp_path_factory.mktemp("doctor") / ".mas")
    yield made
    made.down()


async def bad(system: System) -> dict[str, Check]:
    return {each.name: each for each in await running.look(system.layout) if each.status is not Status.OK}


async def until_whole(system: System) -> None:
    async with asyncio.timeout(30):
        while await bad(system):
            await asyncio.sleep(0.2)


def test_a_whole_broker_is_in_order(system: System):
    found = mas_json("doctor", "--folder", str(system.layout.root))
    checks = found["checks"]
    names = {each["name"] for each in checks}
    assert {each["name"] for each in checks if each["status"] == "FAIL"} == set()
    assert names >= {
        "file modes", "keys", "certificates", "disk", "broker", "nats-server", "clock", "nats durability",
        "redis-server", "redis durability", "policy", "workers", "audit of default",
    }  # fmt: skip
    assert any("2 alive, all on revision" in each["text"] for each in checks)


async def test_a_wrong_clock_is_seen(system: System):
    found = await running.look(system.layout, lambda: time.time() + 5)
    assert [each.status for each in found if each.name == "clock"] == [Status.WARN]


async def test_a_redis_that_would_lose_entries(system: System):
    async with Redis.from_url(system.broker.redis_url()) as client:
        await client.config_set("appendfsync", "everysec")
        try:
            found = await bad(system)
            done = mas("doctor", "--folder", str(system.layout.root), check=False)
        finally:
            await client.config_set("appendfsync", "always")
    assert found["redis durability"].status is Status.FAIL
    assert "appendfsync is everysec" in found["redis durability"].text
    assert (done.returncode, "-> Put 'appendfsync always'" in done.stdout) == (1, True)
    await until_whole(system)


async def test_a_policy_that_cannot_be_read(system: System):
    control = await connect_control_admin(
        system.broker.connection(system.layout, "controller"), system.material.controller
    )
    try:
        subject = subjects.kv_key(subjects.POLICY_BUCKET, "ns.broken")
        await publish(control, subject, b'{"version": 9, "namespace": "broken", "account": "A"}', {})
        found = await bad(system)
        assert found["policy"].status is Status.FAIL
        assert "namespace broken is closed" in found["policy"].text
        assert "version" in found["policy"].text
        await publish(control, subject, b"", {"KV-Operation": "DEL"})
        await PolicyStore(control).wait_confirmed(1)
    finally:
        await control.close()
    await until_whole(system)


async def test_streams_that_somebody_removed(system: System):
    async with system.tenant("default") as tenant:
        js = tenant.jetstream()
        with paused(system, "w1", "w2"):  # else they may have made them again before anybody looks
            await js.delete_consumer(subjects.INBOX_STREAM, AUDIT_GUARD)
            await js.delete_stream(subjects.kv_stream(subjects.LEASES_BUCKET))
            found = await bad(system)
    assert found["streams of default"].status is Status.FAIL
    assert found["streams of default"].text == "KV_leases, AUDIT are gone"
    await until_whole(system)  # workers make them again
    control = await connect_control_admin(
        system.broker.connection(system.layout, "controller"), system.material.controller
    )
    try:
        await control.jetstream().delete_stream(subjects.kv_stream(subjects.WORKERS_BUCKET))
        found = await bad(system)
    finally:
        await control.close()
    assert "CONTROL lacks KV_workers" in found["policy"].text
    assert "mas apply" in found["policy"].fix
    async with system.control() as (controller, _):
        await controller.ensure_control()  # as mas apply begins
    await until_whole(system)


@contextlib.contextmanager
def paused(system: System, *names: str) -> Iterator[None]:
    running_now = children(system.broker.pid)
    pids = [running_now[name] for name in names]
    for pid in pids:
        halt(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_workers_that_hang(system: System):
    with paused(system, "w1", "w2"):
        async with asyncio.timeout(30):
            while "workers" not in (found := await bad(system)):
                await asyncio.sleep(0.2)
        assert found["workers"].status is Status.FAIL
        assert "none is alive" in found["workers"].text
    await until_whole(system)


async def test_a_redis_that_hangs(system: System):
    with paused(system, "redis-server"):
        found = await bad(system)
        assert found["redis-server"].status is Status.FAIL
        assert not any(name.startswith("audit of") for name in found)
    await until_whole(system)


@pytest.mark.parametrize(
    ("broken", "whole", "says"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "'maxmemory'"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only replica"),
    ],
    ids=["maxmemory", "a replica"],
)
async def test_a_redis_that_takes_no_writes(system: System, broken: tuple[str], whole: tuple[str], says: str):
    """It answers, and the audit does not go on; when that began, no record waits yet."""
    async with Redis.from_url(system.broker.redis_url()) as client:
        await client.execute_command(*broken)
        try:
            found = await bad(system)
        finally:
            await client.execute_command(*whole)
        assert found["redis-server"].status is Status.FAIL
        assert "takes no writes" in found["redis-server"].text
        assert says in found["redis-server"].text
        await until_whole(system)
        assert not await client.exists("mas:doctor")


async def test_a_redis_with_another_password(system: System):
    url = system.broker.redis_url()
    async with Redis.from_url(url) as client:
        password = client.connection_pool.connection_kwargs["password"]
        await client.config_set("requirepass", "another")
        try:
            found = await bad(system)
        finally:
            await client.config_set("requirepass", password)
    assert "does not answer (AuthenticationError: " in found["redis-server"].text
    assert "password" in found["redis-server"].text


@pytest.mark.parametrize("altered", [False, True], ids=["emptied", "altered"])
async def test_an_audit_that_is_not_what_was_signed(system: System, altered: bool):
    """Workers go on as if nothing was missing: that it is not signed any more has to be seen."""
    namespace = await system.namespace(["a"], {})
    name = f"signer of {namespace}"
    async with system.redis() as redis:
        store = Store(redis, namespace)
        async with asyncio.timeout(30):
            while not (await store.head()).index or name in await bad(system):
                await asyncio.sleep(0.2)
            while not (signed := await signed_up_to(system, namespace)):
                await asyncio.sleep(0.2)
        with paused(system, "w1", "w2"):  # else what is still in the log is projected again at once
            if altered:
                await redis.xdel(store.layout.chain, f"{signed}-0")
                says = f"entry {signed} is not the one that was signed"
            else:
                await redis.delete(*[key async for key in redis.scan_iter(f"{store.layout.prefix}*")])
                says = f"entry {signed} was signed, but the chain ends at 0"
            found = await bad(system)
    assert found[name].status is Status.FAIL
    assert says in found[name].text
    assert "mas audit verify" in found[name].fix
    await system.without_policy([namespace])
    await until_whole(system)


async def test_a_copy_of_the_audit_that_is_not_written(system: System, tmp_path: Path):
    namespace, file = new_namespace(), tmp_path / "audit.jsonl"
    copied = Governance(audit=AuditSink(file_path=str(file)))
    await system.apply(replace(wanted(namespace, ["a"], {}), governance=copied))
    name = f"copy of the audit of {namespace}"

    async def look(at: float = 0.0) -> Check:
        found = await running.look(system.layout, lambda: time.time() + at)
        return next(each for each in found if each.name == name)

    async with system.redis() as redis, asyncio.timeout(60):
        while not (end := (await Store(redis, namespace).head()).index) or not file.exists():
            await asyncio.sleep(0.1)
        while f"up to {end} of {end}" not in (check := await look(3600)).text:
            await asyncio.sleep(0.1)
    assert check.status is Status.OK
    with paused(system, "w1", "w2"):
        file.rename(tmp_path / "elsewhere")
        lost = await look(3600)
        file.write_text("of somebody else\n")
        other = await look()
    assert lost.status is Status.FAIL
    assert f"has entries up to 0 of {end}, and no more for" in lost.text
    assert other.status is Status.FAIL
    assert "is not a copy of an audit" in other.text
    await system.without_policy([namespace])
    await until_whole(system)


async def signed_up_to(system: System, namespace: str) -> int:
    control = await connect_control_admin(
        system.broker.connection(system.layout, "controller"), system.material.controller
    )
    try:
        signed, _ = await CheckpointStream(control, namespace).last()
    finally:
        await control.close()
    return 0 if signed is None else signed.checkpoint.index


def test_a_relaxed_broker_is_a_warning(tmp_path: Path):
    relaxed = System.up(tmp_path / ".mas", "--relaxed", "--workers", "1")
    try:
        found = mas_json("doctor", "--folder", str(relaxed.layout.root))
    finally:
        relaxed.down()
    assert {each["name"] for each in found["checks"] if each["status"] == "WARN"} >= {
        "nats durability",
        "redis durability",
    }
