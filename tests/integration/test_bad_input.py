"""What bad input and bad days get: a clear, typed error at the place where the person can act (SPEC E)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from broker_policy.audit.query import Question, ask
from broker_policy.audit.store import Store
from broker_policy.dedup import dedup_id
from broker_policy.embedded.halt import halt
from mas_nats import (
    IdReused,
    InvalidMessage,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    PolicyStale,
    Unavailable,
    UnknownTarget,
)
from mas_nats.config import Endpoint
from mas_nats.policy.document import Limits
from mas_nats.resilient import ResilientClient
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.load import Handling
from tests.parts import Parts, parts
from tests.processes import children
from tests.system import System


class Stage:
    """A namespace with a sender that may reach everybody but ``blocked``, and a receiver."""

    def __init__(self, system: System, namespace: str, stack: AsyncExitStack) -> None:
        self.system = system
        self.namespace = namespace
        self._stack = stack

    async def agent(self, name: str) -> Handling:
        tls = self.system.tls(name, self.namespace)
        agent = Handling(name, server_addr=self.system.broker.url, tls=tls)
        return await self._stack.enter_async_context(agent)

    async def raw(self, name: str) -> ResilientClient:
        """A connection with the certificate of ``name`` that says what no SDK would."""
        client = ResilientClient()
        endpoint = Endpoint(self.system.broker.url, self.system.tls(name, self.namespace))

        async def ignore(_: Exception) -> None:
            return None

        await client.connect_within(10, servers=[endpoint.url], tls=endpoint.context(), error_cb=ignore)
        self._stack.push_async_callback(client.close)
        return client

    async def call(self, client: ResilientClient, agent: str, body: bytes, **fields: str) -> Verdict:
        known = {headers.MSG_ID: os.urandom(8).hex(), headers.TARGET: "receiver", headers.TYPE: "work"}
        answer = await client.request(subjects.call(agent, "send"), body, timeout=5, headers=known | fields)
        return Verdict.decode(answer.data)

    async def audited(self, message_id: str, wanted: str, timeout: float = 10) -> list[dict[str, Any]]:
        """Wait for a decision ``wanted`` about a message; what the audit has about it."""
        async with asyncio.timeout(timeout), self.system.redis() as redis:
            while True:
                question = Question(None, None, None, None, message_id)
                rows = [row.row() for row in await ask(Store(redis, self.namespace), question, limit=20)]
                if any(row["decision"] == wanted for row in rows):
                    return rows
                await asyncio.sleep(0.1)


@pytest.fixture
async def stage(system: System) -> AsyncIterator[Stage]:
    agents = ["sender", "receiver", "blocked", "other"]
    namespace = await system.namespace(agents, {"sender": ["*"]}, block={"sender": ["blocked"]})
    async with AsyncExitStack() as stack:
        yield Stage(system, namespace, stack)


# -- the message ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target", ["rec*", ">", "a.b", "re ceiver", "", "Receiver", "x" * 64, "../x", "a/b/c"]
)
async def test_a_target_that_is_no_id(stage: Stage, target: str) -> None:
    sender = await stage.agent("sender")
    with pytest.raises(InvalidMessage) as caught:
        await sender.send(target, "work", {})
    assert caught.value.decision is Decision.INVALID
    assert "a-z" in str(caught.value)


@pytest.mark.parametrize("target", ["rec*", ">", "a.b", "re ceiver", "receiver\x7f", "$JS.API.>"])
async def test_a_target_that_is_no_id_past_the_sdk(stage: Stage, target: str) -> None:
    """The service decides by itself, and audits what it refused."""
    client = await stage.raw("sender")
    message_id = os.urandom(8).hex()
    verdict = await stage.call(
        client, "sender", b"{}", **{headers.TARGET: target, headers.MSG_ID: message_id}
    )
    assert (verdict.ok, verdict.decision, verdict.rule) == (False, Decision.INVALID, "target")
    await stage.audited(message_id, "INVALID")


async def test_a_target_that_does_not_exist(stage: Stage) -> None:
    sender = await stage.agent("sender")
    with pytest.raises(UnknownTarget, match="no agent 'nobody'"):
        await sender.send("nobody", "work", {})


async def test_a_target_in_another_namespace(stage: Stage) -> None:
    sender = await stage.agent("sender")
    with pytest.raises(PermissionDenied, match="no rule allows sender to send to elsewhere/receiver"):
        await sender.send("elsewhere/receiver", "work", {})


async def test_block_beats_allow_and_nothing_is_allowed_by_default(stage: Stage) -> None:
    sender, receiver = await stage.agent("sender"), await stage.agent("receiver")
    with pytest.raises(PermissionDenied) as blocked:
        await sender.send("blocked", "work", {})
    assert blocked.value.verdict.rule == "blocked_targets"
    with pytest.raises(PermissionDenied) as denied:
        await receiver.send("sender", "work", {})
    assert denied.value.verdict.rule == "deny_by_default"
    rows = await stage.audited(denied.value.message_id, "AUTHZ_DENIED")
    assert rows[0]["outcome"] == "refused"


async def test_too_large(stage: Stage) -> None:
    sender, client = await stage.agent("sender"), await stage.raw("sender")
    with pytest.raises(InvalidMessage, match="limit is 1000000"):
        await sender.send("receiver", "work", {"text": "x" * 1_000_000})
    verdict = await stage.call(client, "sender", b'{"text":"' + b"x" * 1_000_000 + b'"}')
    assert verdict.decision is Decision.TOO_LARGE


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[1]", b'"text"', b"{", b"\xff\xfe", b'{"a":NaN}', b"null"]
)
async def test_a_body_that_is_no_json_object(stage: Stage, body: bytes) -> None:
    client = await stage.raw("sender")
    verdict = await stage.call(client, "sender", body)
    assert (verdict.ok, verdict.decision, verdict.rule) == (False, Decision.INVALID, "json")


async def test_data_that_cannot_be_json(stage: Stage) -> None:
    sender = await stage.agent("sender")
    with pytest.raises(InvalidMessage):
        await sender.send("receiver", "work", {"when": object()})


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({headers.MSG_ID: ""}, "message_id"),
        ({headers.MSG_ID: "x" * 129}, "message_id"),
        ({headers.MSG_ID: "with space"}, "message_id"),
        ({headers.TYPE: ""}, "type"),
        ({headers.TYPE: "x" * 129}, "type"),
        ({headers.DEADLINE: "soon"}, "header"),
        ({headers.TRACESTATE: "x" * 2000}, "header"),
    ],
)
async def test_malformed_headers(stage: Stage, fields: dict[str, str], rule: str) -> None:
    client = await stage.raw("sender")
    verdict = await stage.call(client, "sender", b"{}", **fields)
    assert (verdict.ok, verdict.decision, verdict.rule) == (False, Decision.INVALID, rule)


async def test_headers_that_an_agent_must_not_set_end_at_the_service(stage: Stage) -> None:
    client = await stage.raw("sender")
    hostile = {
        "Mas-Sender": "ceo",
        "Mas-Audit": "forged.1.0",
        "Mas-Salt": "00",
        "Mas-Sent": "1",
        "Nats-Rollup": "all",
        "Nats-Schedule-Target": "mas.inbox.other",
        "Nats-TTL": "1s",
        "Nats-Expected-Last-Sequence": "999999",
        "Nats-Expected-Last-Msg-Id": "x",
        "Nats-Batch-Id": "x",
        "X-Anything": "1",
    }
    verdict = await stage.call(client, "sender", b"{}", **hostile)
    assert verdict.ok
    async with stage.system.tenant(stage.namespace) as tenant:
        stored = await tenant.jetstream().get_last_msg(subjects.INBOX_STREAM, subjects.inbox("receiver"))
    assert stored.headers is not None
    assert stored.headers["Mas-Sender"] == "sender"
    assert stored.headers["Mas-Audit"] != "forged.1.0"
    record, _, _ = stored.headers["Mas-Audit"].rpartition(".")
    assert stored.headers.pop(headers.EXPECTED_LAST_MSG_ID, record) == record, "the service's own, if any"
    assert set(stored.headers) == {
        headers.MESSAGE_ID,
        headers.SENDER,
        headers.TYPE,
        headers.SENT,
        headers.SALT,
        headers.TARGET,
        headers.MSG_ID,
        headers.AUDIT,
    }


async def test_a_known_id_with_other_content(stage: Stage) -> None:
    """Whichever of the two workers gets it, and also after the first was handled and is gone."""
    sender = await stage.agent("sender")
    await sender.send("receiver", "work", {"n": 1}, id="known")
    for number in range(2, 12):
        with pytest.raises(IdReused):
            await sender.send("receiver", "work", {"n": number}, id="known")
        with pytest.raises(IdReused):
            await sender.send("other", "work", {"n": 1}, id="known")
        assert await sender.send("receiver", "work", {"n": 1}, id="known") == "known"

    receiver = await stage.agent("receiver")
    assert await receiver.wait_handled({"known"}, 10) == set()
    await stage.audited("known", "ID_REUSED")
    for number in range(20, 30):
        with pytest.raises(IdReused):
            await sender.send("receiver", "work", {"n": number}, id="known")
        await sender.send("receiver", "work", {"n": 1}, id="known")
    await sender.send("receiver", "work", {"n": 0}, id="last")
    assert await receiver.wait_handled({"last"}, 10) == set()
    assert receiver.handled["known"] == 1


async def test_an_id_whose_message_was_never_stored_is_spent(stage: Stage) -> None:
    """A worker died between decision and message, and the audit has closed the case with a probe."""
    sender = await stage.agent("sender")
    async with stage.system.tenant(stage.namespace) as tenant:
        taken = {headers.MSG_ID: dedup_id(stage.namespace, "sender", "orphan")}
        await tenant.jetstream().publish("mas.audit.probe-test.1", b"{}", headers=taken)
    with pytest.raises(IdReused, match="never stored") as spent:
        await sender.send("receiver", "work", {}, id="orphan")
    assert spent.value.verdict.rule == "given_up"


async def test_another_senders_id_is_no_obstacle(stage: Stage) -> None:
    """Dedup ids are stream-wide: a sender must not be able to occupy an id that somebody else will use."""
    namespace = await stage.system.namespace(
        ["sender", "mallory", "receiver"], {"sender": ["receiver"], "mallory": ["receiver"]}
    )
    async with AsyncExitStack() as stack:
        here = Stage(stage.system, namespace, stack)
        mallory, sender, receiver = [await here.agent(name) for name in ("mallory", "sender", "receiver")]
        await mallory.send("receiver", "work", {"n": 666}, id="invoice-1")
        await sender.send("receiver", "work", {"n": 1}, id="invoice-1")
        await sender.send("receiver", "work", {}, id="last")
        assert await receiver.wait_handled({"last", "invoice-1"}, 10) == set()
        assert receiver.handled["invoice-1"] == 2


async def test_a_full_inbox_tells_the_sender_and_hurts_nobody_else(system: System) -> None:
    limits = Limits(inbox_messages=10)
    namespace = await system.namespace(["sender", "receiver", "other"], {"sender": ["*"]}, limits=limits)
    async with AsyncExitStack() as stack:
        here = Stage(system, namespace, stack)
        sender = await here.agent("sender")
        sent = {await sender.send("receiver", "work", {"n": number}) for number in range(10)}
        for _ in range(5):
            with pytest.raises(Overloaded) as full:
                await sender.send("receiver", "work", {})
            assert full.value.decision is Decision.INBOX_FULL
            await sender.send("other", "work", {})
        await here.audited(full.value.message_id, "INBOX_FULL")
        receiver = await here.agent("receiver")
        assert await receiver.wait_handled(sent, 10) == set()
        await asyncio.wait_for(until_accepted(sender, "receiver"), 10)


async def until_accepted(
    sender: Handling, target: str, data: dict[str, object] | None = None, message_id: str | None = None
) -> str:
    while True:
        try:
            return await sender.send(target, "work", data or {}, id=message_id)
        except (Overloaded, PolicyStale, Unavailable):
            await asyncio.sleep(0.1)


async def send_for_ever(
    sender: Handling, accepted: set[str] | None = None, text: str = "", *, timeout: float = 30
) -> None:
    for number in itertools.count():
        message_id = await sender.send("receiver", "work", {"n": number, "text": text}, timeout=timeout)
        if accepted is not None:
            accepted.add(message_id)


# -- the bad day ------------------------------------------------------------------------------------------
@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[tuple[Parts, Stage]]:
    """A system whose parts may be stopped."""
    async with parts(tmp_path) as up, AsyncExitStack() as stack:
        namespace = await up.namespace(["sender", "receiver"], {"sender": ["*"]})
        yield up, Stage(up, namespace, stack)


async def test_no_worker_is_told_soon_and_nothing_happened(own: tuple[Parts, Stage]) -> None:
    up, here = own
    sender, receiver = await here.agent("sender"), await here.agent("receiver")
    await up.stop_worker(up.workers[0])
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        await sender.send("receiver", "work", {}, id="early")
    assert time.monotonic() - begun < 2
    await up.start_worker()
    await asyncio.wait_for(until_accepted(sender, "receiver"), 10)
    assert "early" not in receiver.handled


async def test_policy_that_cannot_be_confirmed_refuses_within_two_seconds(own: tuple[Parts, Stage]) -> None:
    up, here = own
    sender = await here.agent("sender")
    await sender.send("receiver", "work", {})
    async with up.control() as (_, store):
        policy = subjects.kv_stream(subjects.POLICY_BUCKET)
        await store._nc.jetstream().delete_stream(policy)

    async def until_refused() -> None:
        while True:
            with contextlib.suppress(OutcomeUnknown):  # on a busy machine half a second may be too short
                await send_for_ever(sender, timeout=0.5)

    begun = time.monotonic()
    with pytest.raises(PolicyStale):
        await asyncio.wait_for(until_refused(), 5)
    assert 1 < time.monotonic() - begun < 3.5


async def test_a_full_log_refuses_and_recovers(own: tuple[Parts, Stage]) -> None:
    """Redis is away, so that records stay; the log has little room; then Redis is back."""
    up, _ = own
    limits = Limits(log_bytes=200_000)
    namespace = await up.namespace(["sender", "receiver"], {"sender": ["*"]}, limits=limits)
    async with AsyncExitStack() as stack:
        here = Stage(up, namespace, stack)
        sender, receiver = await here.agent("sender"), await here.agent("receiver")
        up.redis_server.kill()
        accepted: set[str] = set()
        with pytest.raises(Overloaded) as full:
            await asyncio.wait_for(send_for_ever(sender, accepted, "x" * 500), 30)
        assert full.value.decision is Decision.LOG_FULL
        assert len(accepted) > 50
        assert await receiver.wait_handled(accepted, 20) == set()
        with pytest.raises(Overloaded):
            await sender.send("receiver", "work", {"text": "x" * 500})
        await up.redis_server.start()
        accepted.add(await asyncio.wait_for(until_accepted(sender, "receiver"), 20))
        assert await receiver.wait_handled(accepted, 20) == set()
        assert full.value.message_id not in receiver.handled
        await here.audited(full.value.message_id, "LOG_FULL")


async def test_redis_away_does_not_matter_to_traffic(own: tuple[Parts, Stage]) -> None:
    up, here = own
    sender, receiver = await here.agent("sender"), await here.agent("receiver")
    up.redis_server.kill()
    sent = {await sender.send("receiver", "work", {"n": number}) for number in range(50)}
    assert await receiver.wait_handled(sent, 10) == set()
    await up.redis_server.start()
    for message_id in sent:
        rows = await here.audited(message_id, "ALLOWED", 15)
        assert len(rows) == 1


async def test_nats_away_and_back(own: tuple[Parts, Stage]) -> None:
    up, here = own
    sender, receiver = await here.agent("sender"), await here.agent("receiver")
    before = await sender.send("receiver", "work", {})
    assert await receiver.wait_handled({before}, 10) == set()
    up.nats.kill()
    with pytest.raises((Unavailable, OutcomeUnknown)):
        await sender.send("receiver", "work", {}, timeout=1)
    await up.nats.start()
    await up.provision()
    after = await asyncio.wait_for(until_accepted(sender, "receiver"), 20)
    assert await receiver.wait_handled({after}, 20) == set()


async def test_workers_that_fall_silent_leave_an_unknown_outcome(tmp_path: Path) -> None:
    """Paused in the middle: the sender knows that it does not know, and repeats safely."""
    system = System.up(tmp_path / ".mas", "--workers", "1")
    try:
        namespace = await system.namespace(["sender", "receiver"], {"sender": ["*"]})
        async with AsyncExitStack() as stack:
            here = Stage(system, namespace, stack)
            sender, receiver = await here.agent("sender"), await here.agent("receiver")
            worker = children(system.broker.pid)["w1"]
            halt(worker)
            try:
                with pytest.raises(OutcomeUnknown) as unknown:
                    await sender.send("receiver", "work", {"n": 1}, timeout=2)
            finally:
                os.kill(worker, signal.SIGCONT)
            message_id = unknown.value.message_id
            await asyncio.wait_for(until_accepted(sender, "receiver", {"n": 1}, message_id), 10)
            last = await sender.send("receiver", "work", {})
            assert await receiver.wait_handled({message_id, last}, 10) == set()
            assert receiver.handled[message_id] == 1
    finally:
        system.down()


async def test_an_agent_that_policy_forgot_is_refused(own: tuple[Parts, Stage]) -> None:
    """Though it is still connected and its account still exists."""
    up, here = own
    client = await here.raw("sender")
    async with up.control() as (_, store):
        stored = await store.get(here.namespace)
        assert stored is not None
        agents = {name: agent for name, agent in stored.document.agents.items() if name != "sender"}
        revision = await store.put(
            stored.document.model_copy(update={"agents": agents}), expected=stored.sequence
        )
        await store.wait_confirmed(revision)
    verdict = await here.call(client, "sender", b"{}")
    assert (verdict.decision, verdict.rule) == (Decision.AUTHZ_DENIED, "unknown_sender")
