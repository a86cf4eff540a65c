"""The NATS service protocol of the policy service, asked as any client may ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from broker_policy.micro import NAME
from broker_policy.tenants.people import ensure_declared
from mas_nats import Agent
from mas_nats.config import Endpoint
from mas_nats.errors import PermissionDenied
from mas_nats.wire import subjects
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.subjects import Op
from tests.system import System, wanted


@pytest.fixture
async def namespace(system: System) -> str:
    return await system.namespace(["asker", "desk"], {"asker": ["desk"]})


async def ask(nc: Client, verb: str, *names: str) -> list[dict[str, Any]]:
    """All answers."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish(subjects.micro(verb, *names), b"", reply=inbox)
    answers: list[dict[str, Any]] = []
    try:
        while len(answers) < 2:  # as many as workers
            answer = await subscription.next_msg(timeout=10 if not answers else 2)
            if (answer.headers or {}).get("Status") == "503":
                break
            answers.append(orjson.loads(answer.data))
    except nats.errors.TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return sorted(answers, key=lambda each: each["id"])


async def test_each_worker_answers_and_one_that_is_named_alone(system, namespace):
    async with system.tenant(namespace) as nc:
        for verb in ("PING", "INFO", "STATS"):
            for names in ((), (NAME,)):
                told = await ask(nc, verb, *names)
                assert len(told) == 2
                assert {each["type"] for each in told} == {f"io.nats.micro.v1.{verb.lower()}_response"}
                assert {each["name"] for each in told} == {NAME}
                assert {each["metadata"]["namespace"] for each in told} == {namespace}
            one = told[0]["id"]
            assert [each["id"] for each in await ask(nc, verb, NAME, one)] == [one]
        assert await ask(nc, "PING", "another") == []
        assert await ask(nc, "PING", NAME, "another") == []


async def test_info_names_every_call_of_agents(system, namespace):
    async with system.tenant(namespace) as nc:
        told = (await ask(nc, "INFO"))[0]
    assert {each["name"]: each["subject"] for each in told["endpoints"]} == {
        str(op): subjects.call("*", op) for op in Op
    }
    assert {each["queue_group"] for each in told["endpoints"]} == {subjects.WORKER_QUEUE}


async def test_stats_count_what_was_asked_and_what_was_refused(system, namespace):
    tls = system.tls("asker", namespace)
    async with Agent("asker", server_addr=system.broker.url, tls=tls, receive=False) as asker:
        for _ in range(3):
            await asker.send("desk", "ask", {})
        with pytest.raises(PermissionDenied):
            await asker.send("asker", "ask", {})
        async with system.tenant(namespace) as nc:
            told = [endpoint for each in await ask(nc, "STATS") for endpoint in each["endpoints"]]
    sends = [endpoint for endpoint in told if endpoint["name"] == "send"]
    assert sum(each["num_requests"] for each in sends) == 4
    assert sum(each["num_errors"] for each in sends) == 1
    assert {each["last_error"] for each in sends} == {"", "AUTHZ_DENIED"}
    counted = [each["data"]["agents"].get("asker", {"sent": 0, "refused": 0}) for each in sends]
    assert sum(each["sent"] for each in counted) == 3
    assert sum(each["refused"] for each in counted) == 1
    for each in told:
        assert each["average_processing_time"] <= each["processing_time"]


async def test_an_inspector_finds_it_and_an_agent_may_not_ask(system, namespace):
    async with system.control() as (controller, store):
        await ensure_declared(controller, store, Identity("mas", namespace, Role.INSPECTOR, "carol"))
    async with connected(system, Role.INSPECTOR, "carol", namespace) as (nc, _):
        assert len(await ask(nc, "PING")) == 2
    async with connected(system, Role.AGENT, "asker", namespace) as (nc, refused):
        await nc.publish(subjects.micro("PING"), b"", reply=nc.new_inbox())
        await asyncio.wait_for(refused.wait(), 30)


async def test_whom_a_manifest_does_not_name_any_more_is_out(system, namespace):
    people = {Role.INSPECTOR: "carol", Role.OPERATOR: "olga"}
    async with system.control() as (controller, store):
        for role, name in people.items():
            await ensure_declared(controller, store, Identity("mas", namespace, role, name))
    async with AsyncExitStack() as stack:
        clients = [
            (await stack.enter_async_context(connected(system, role, name, namespace)))[0]
            for role, name in people.items()
        ]
        before = [nc.stats["reconnects"] for nc in clients]
        await system.apply(wanted(namespace, ["asker", "desk"], {"asker": ["desk"]}))
        async with asyncio.timeout(30):
            while any(nc.is_connected for nc in clients):
                await asyncio.sleep(0.02)
        assert [nc.stats["reconnects"] for nc in clients] == before  # refused, not merely sent away


@asynccontextmanager
async def connected(
    system: System, role: Role, name: str, namespace: str
) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A client with nothing but a certificate, and whether it was refused something."""
    nc, refused = Client(), asyncio.Event()

    async def note(error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            refused.set()

    where = Endpoint(system.broker.url, system.tls(name, namespace, role=role))
    await nc.connect(where.url, tls=where.context(), tls_hostname="localhost", error_cb=note)
    try:
        yield nc, refused
    finally:
        await nc.close()
