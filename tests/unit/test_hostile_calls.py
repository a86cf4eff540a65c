"""Calls as only a hostile agent makes them, on a real server: each is answered, and costs nobody else."""

from __future__ import annotations

import asyncio
import itertools
import string
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from broker_policy.audit.record import Outcome
from broker_policy.calls import asides
from broker_policy.commit.waiting import Waiting
from mas_nats.policy import instances
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.governance import Governance, RateLimits
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.lossy import Lossy
from tests.serving import Serving, document, serving


@pytest.fixture
def lossy(nc: Client) -> Lossy:
    return Lossy(nc)


@pytest.fixture
async def here(nc: Client, lossy: Lossy) -> AsyncIterator[Serving]:
    async with serving(nc, document(("alice", "bob", "mallory")), through=lossy) as up:
        yield up


DEEP = b'{"op":"put","revision":0,"value":' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}"
DEEP_METADATA = b'{"metadata":' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}"


OPS = (
    "hello",
    "bye",
    "discover",
    "fail",
    "state",
    "send",
    "reply",
    "frame",
    "flow",
    "cancel",
    "request",
    "token",
    "nonsense",
)
BODIES = (
    b"",
    b"\xff",
    b"[]",
    b"1",
    b"null",
    b'"x"',
    b"[" * 100_000,
    DEEP,
    DEEP_METADATA,
    b'{"metadata":[[1,2]],"capabilities":[]}',
    b'{"metadata":{"a":1e999}}',
    b'{"capabilities":[{}],"metadata":7}',
    b'{"capabilities":"abc","instance":"../../x","metadata":{}}',
    b'{"instance":["a"],"op":["put"]}',
    b'{"op":"put","revision":1e30,"value":{}}',
    b'{"op":"put","revision":-1,"value":{}}',
    b'{"op":"put","revision":99999999999999999999,"value":{}}',
    b'{"x":"' + b"y" * 1_000_000 + b'"}',
)
VALUES = ("x" * 60_000, "\x01\x7f", "é" * 600, "*", ">", "a.b", " ", '"' * 128)
NAMES = (
    headers.MSG_ID,
    headers.TARGET,
    headers.TYPE,
    headers.INSTANCE,
    headers.REPLY_TOKEN,
    headers.DEADLINE,
    headers.TRACEPARENT,
    headers.TRACESTATE,
)


async def test_every_body_is_answered(here: Serving):
    for op in OPS:
        for body in BODIES:
            verdict = await here.call("mallory", op, body)
            refused = verdict.decision in (Decision.INVALID, Decision.TOO_LARGE, Decision.REPLY_FOREIGN)
            assert refused or op in ("hello", "discover", "bye"), (op, body[:40], verdict)


async def test_every_header_is_answered(here: Serving):
    for op in OPS:
        for value in VALUES:
            for names in ([each] for each in NAMES):
                verdict = await here.call("mallory", op, {}, **dict.fromkeys(names, value))
                assert len(verdict.message_id) <= headers.MAX_VALUE_BYTES
            verdict = await here.call("mallory", op, {}, **dict.fromkeys(NAMES, value))
            assert not verdict.ok or op in ("hello", "discover")


def _many(head: bytes, entry: bytes, tail: bytes, count: int = 80_000) -> bytes:
    return head + b",".join(entry.replace(b"N", b"%x" % number) for number in range(count)) + tail


WRONG_THROUGHOUT = (
    ("token", _many(b'{"do":"issue","target":"bob",', b'"N":1', b"}")),
    ("token", _many(b'{"do":"selected","token":"x","tools":[', b'"!"', b"]}")),
    ("token", _many(b'{"do":"keys",', b'"x":1', b"}")),
    ("prompt", _many(b'{"asked":"x","chunks":[', b"1", b"]}", count=400_000)),
    ("prompt", _many(b'{"asked":"x","chunks":[],', b'"N":1', b"}")),
)


@pytest.mark.parametrize(("op", "body"), WRONG_THROUGHOUT, ids=range(len(WRONG_THROUGHOUT)))
async def test_what_is_wrong_throughout_holds_nobody_up(here: Serving, op: str, body: bytes):
    fields = {
        headers.MSG_ID: "m1",
        headers.TARGET: "model.example",
        headers.TYPE: "llm_answer:messages",
    }
    begun = time.process_time()
    verdict = await here.call("mallory", op, body, **fields)
    assert time.process_time() - begun < 0.5, "of the loop that everybody waits for"
    assert (verdict.decision, verdict.rule) == (
        Decision.INVALID,
        "token" if op == "token" else "llm_answer",
    )
    assert len(verdict.reason) < 200


# -- content that goes deep ----------------------------------------------------------------------------------
LIMITED = Governance(rate_limit=RateLimits(per_minute=1_000))


def deep() -> bytes:
    """An address in lists in a string in lists in a string in lists: little, and none of them too deep."""
    text = '"a@b.example.com"'
    for count in (150, 185, 190):
        lists = "[" * count + text + "]" * count
        text = orjson.dumps(lists).decode()
    return b'{"a":' + lists.encode() + b"}"


def named(message_id: str, **more: str) -> dict[str, str]:
    return {headers.MSG_ID: message_id, headers.TARGET: "bob", headers.TYPE: "work", **more}


def later(message_id: str) -> dict[str, str]:
    return named(message_id, **{headers.DELAY: "60000"})


async def test_what_is_too_deep_to_be_searched_is_refused_and_audited(
    here: Serving, caplog: pytest.LogCaptureFixture
):
    sent = (here.call("mallory", op, deep(), **later(op)) for op in ("send", "delay"))
    for verdict in await asyncio.gather(*sent):
        assert (verdict.decision, verdict.rule) == (Decision.DLP_BLOCKED, "dlp:nesting")
    lines = {line.message_id: line.decision for each in await here.records() for line in each.decisions}
    assert lines == dict.fromkeys(("send", "delay"), Decision.DLP_BLOCKED)
    assert "Traceback" not in caplog.text


async def test_where_limits_are_set_it_stops_nobody(nc: Client):
    async with serving(nc, document(("alice", "bob", "mallory"), governance=LIMITED)) as here:
        assert (await here.call("mallory", "delay", deep(), **later("p"))).rule == "dlp:nesting"
        assert (await here.call("alice", "delay", {}, **later("m1"))).ok


def failing(decide: Callable[..., None]) -> Callable[..., None]:
    """``decide``, with a fault that is met a thousand calls deep where mallory calls."""

    def fail(level: int) -> None:
        if level:
            fail(level - 1)
        raise LookupError("some step")

    def decided(call: Call, refusal: Refusal | None) -> None:
        if call.sender == "mallory":
            fail(600)
        decide(call, refusal)

    return decided


async def test_a_fault_in_deciding_costs_only_its_call(nc: Client, caplog: pytest.LogCaptureFixture):
    async with serving(nc, document(("alice", "bob", "mallory"), governance=LIMITED)) as here:
        admitting = here.service._delayed._limited._admitting
        admitting._decide = failing(admitting._decide)
        calls = [
            here.call(sender, "delay", {}, timeout=5, **later(f"m{number}"))
            for number, sender in enumerate(("alice", "mallory", "alice"))
        ]
        verdicts = await asyncio.gather(*calls)
        assert [verdict.decision for verdict in verdicts] == [
            Decision.ALLOWED,
            Decision.UNAVAILABLE,
            Decision.ALLOWED,
        ]
        assert "LookupError: some step" in caplog.text
        assert len(caplog.text) < 4_000
        assert (await here.call("alice", "delay", {}, timeout=5, **later("m3"))).ok


async def test_who_stops_after_such_a_fault_finishes_what_was_taken(nc: Client):
    async with serving(nc, document(("alice", "bob", "mallory"), governance=LIMITED)) as here:
        admitting = here.service._delayed._limited._admitting
        admitting._decide = failing(admitting._decide)
        calls = [
            asyncio.create_task(here.call(sender, "delay", {}, timeout=5, **later(f"m{number}")))
            for number, sender in enumerate(("mallory", "alice"))
        ]
        async with asyncio.timeout(5):
            while not admitting._waiting:
                await asyncio.sleep(0)
        await here.service.stop()  # and again at the end: both without an error
        assert [(await call).ok for call in calls] == [False, True]


# -- the registry ------------------------------------------------------------------------------------------
async def test_instances_of_one_agent_leave_room_for_the_others(here: Serving):
    large = {"metadata": {"text": "x" * 8_000}}
    verdicts = await asyncio.gather(*(here.call("mallory", "hello", large) for _ in range(200)))
    for _ in range(5):
        verdicts += await asyncio.gather(*(here.call("mallory", "hello", large) for _ in range(50)))
    refused = [verdict for verdict in verdicts if not verdict.ok]
    assert refused
    assert {verdict.rule for verdict in refused} <= {"instances", "busy"}
    assert (await here.call("bob", "hello", large)).ok
    alive = here.service._registry._instances.alive("mallory")
    assert sum(each.size for each in alive.values()) <= instances.MOST_BYTES
    (found,) = [
        each
        for each in (await here.call("alice", "discover", {})).result["agents"]
        if each["agent_id"] == "mallory"
    ]
    assert found["instances"] == len(alive)
    assert len(orjson.dumps(found)) < 2 * instances.MOST_METADATA


async def test_an_instance_that_was_there_keeps_its_place(here: Serving):
    first = (await here.call("mallory", "hello", {})).result["instance"]
    for number in range(instances.MOST_INSTANCES - 1):
        here.service._registry._instances.announce("mallory", f"i{number}", (), {}, 10)
    assert (await here.call("mallory", "hello", {})).rule == "instances"
    again = await here.call("mallory", "hello", {"instance": first})
    assert again.result["instance"] == first


async def test_what_an_agent_makes_up_does_not_hold_up_who_looks_for_others(here: Serving):
    """All capabilities that fit into its hellos, none of them declared."""
    shortest = ["".join(each) for each in itertools.product(string.printable[:62], repeat=3)]
    for number in range(40):
        some = shortest[number * 1_300 : (number + 1) * 1_300]
        await here.call("mallory", "hello", {"capabilities": some})
    alive = here.service._registry._instances.alive("mallory")
    assert sum(len(each.capabilities) for each in alive.values()) > 40_000
    table = here.service._follower.table("default")
    assert table is not None
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        (found,) = here.service._registry.discover("alice", [], table)
        took.append(time.perf_counter() - begun)
    assert (found["agent_id"], found["capabilities"]) == ("mallory", [])
    assert min(took) < 0.001, "the loop of a worker, which everybody waits for"


async def test_what_the_registry_should_not_hold_stops_nobody(nc: Client):
    async with serving(nc) as here:
        await here.call("bob", "hello", {})
        for body in (b"\xff", b"[]", b'{"capabilities":1}', b'{"capabilities":[],"metadata":[1]}'):
            await nc.publish("$KV.registry.bob.x", body)
            await nc.publish("$KV.identities.bob", body)
        await nc.flush()
        (found,) = (await here.call("alice", "discover", {})).result["agents"]
        assert found["instances"] == 1
    async with serving(nc) as here:  # and it is there when the next worker starts
        assert (await here.call("alice", "discover", {})).ok


async def test_found_more_than_fits(here: Serving, monkeypatch: pytest.MonkeyPatch):
    await here.call("bob", "hello", {"metadata": {"text": "x" * 5_000}})
    monkeypatch.setattr(here.service, "_nc", here.nc)
    presence_room = 4_000
    monkeypatch.setattr(type(here.nc), "max_payload", property(lambda _: presence_room + 8_192))
    verdict = await here.call("alice", "discover", {})
    assert (verdict.decision, verdict.rule) == (Decision.INVALID, "discover")


# -- floods ------------------------------------------------------------------------------------------------
async def test_calls_beside_the_lanes_are_bounded_for_each_agent(
    here: Serving, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
):
    release = asyncio.Event()

    async def stuck(call: Call) -> Verdict:
        await release.wait()
        raise LookupError(call.op)

    monkeypatch.setitem(here.service._calls, "bye", lambda call: here.service._asides.take(call, stuck))
    calls = [asyncio.create_task(here.call("mallory", "bye")) for _ in range(asides.MOST_OF_ONE + 50)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert {task.result().rule for task in done} == {"busy"}
    assert (await here.call("alice", "discover")).ok
    release.set()
    verdicts = await asyncio.gather(*calls)
    assert {verdict.decision for verdict in verdicts} == {Decision.UNAVAILABLE}
    assert not here.service._asides._of


def test_waiting_is_bounded_in_number_bytes_and_share():
    queue: Waiting[tuple[str, int]] = Waiting(lambda item: item, most=8, most_bytes=800)
    assert [queue.put(("a", 10)) for _ in range(3)] == [True, True, False]
    assert queue.put(("b", 190))
    assert not queue.put(("b", 20))
    assert queue.put(("c", 200))
    assert queue.put(("d", 200))
    assert queue.put(("e", 190))
    assert not queue.put(("f", 1))
    taken = [queue.take() for _ in range(4)]
    assert [sender for sender, _ in taken] == ["a", "a", "b", "c"]
    queue.put_back(taken)
    assert [queue.take() for _ in range(len(queue))] == [*taken, ("d", 200), ("e", 190)]
    assert queue.put(("a", 200))
    assert not queue.put(("a", 1))
    assert (queue.begin(), len(queue)) == (("a", 200), 0)
    assert not queue.put(("a", 1)), "it still takes room"
    queue.release(("a", 200))
    assert queue.put(("a", 200))


class Held(Lossy):
    """States are not written until they may be."""

    def __init__(self, nc: Client) -> None:
        super().__init__(nc)
        self.free = asyncio.Event()

    async def request(self, subject: str, *args: Any, **more: Any) -> Any:
        if subject.startswith("$KV.state."):
            await self.free.wait()
        return await super().request(subject, *args, **more)


@pytest.fixture
def held(nc: Client) -> Held:
    return Held(nc)


@pytest.fixture
async def stuck(nc: Client, held: Held) -> AsyncIterator[Serving]:
    async with serving(nc, document(("alice", "bob", "carol", "mallory")), through=held) as up:
        yield up
        held.free.set()


def put_states(here: Serving, agent: str, count: int, size: int = 1) -> list[asyncio.Task[Verdict]]:
    """States that ``agent`` asks to be written, all at once."""
    put = {"op": "put", "revision": 0, "value": {"x": "y" * size}}
    calls = (here.call(agent, "state", put, **{headers.MSG_ID: f"{agent}{n}"}) for n in range(count))
    return [asyncio.create_task(call) for call in calls]


async def answered(calls: list[asyncio.Task[Verdict]], count: int) -> set[str]:
    """The rules by which those were answered that are, once there are ``count``."""
    async with asyncio.timeout(10):
        while sum(call.done() for call in calls) < count:
            await asyncio.sleep(0.01)
    return {call.result().rule for call in calls if call.done()}


@pytest.mark.parametrize(("size", "room"), [(1, ("_most", 40)), (20_000, ("_most_bytes", 40 * 21_100))])
async def test_what_one_agent_has_under_way_leaves_room_for_others(
    stuck: Serving, held: Held, size: int, room: tuple[str, int]
):
    lane = stuck.service._acts
    setattr(lane._waiting, *room)
    flood = put_states(stuck, "mallory", 10, size)
    async with asyncio.timeout(10):
        while len(lane._running) < 10:
            await asyncio.sleep(0.01)
    flood += put_states(stuck, "mallory", 50, size)
    assert await answered(flood, 50) == {"busy"}
    assert (await stuck.call("alice", "withdraw", **named("m1"))).ok
    held.free.set()
    verdicts = await asyncio.gather(*flood)
    assert sum(verdict.rule != "busy" for verdict in verdicts) == 10
    assert (await asyncio.gather(*put_states(stuck, "mallory", 1)))[0].rule != "busy"


async def test_a_connection_is_audited_also_when_there_is_no_room_at_first(stuck: Serving, held: Held):
    stuck.service._acts._waiting._most = 4
    for agent in ("alice", "bob", "carol", "mallory"):
        await answered(put_states(stuck, agent, 2), 1)
    stuck.service.connected("spiffe://x/eve", "f1", agent="", refused="policy knows no such identity")
    stuck.service.connected("spiffe://x/alice", "f2", agent="alice")
    held.free.set()
    async with asyncio.timeout(5):
        while stuck.service._registry.fingerprint("alice") != "f2":
            await asyncio.sleep(0.02)
    lines = [line for record in await stuck.records("a") for line in record.decisions if line.op == "connect"]
    assert [(line.sender, line.decision) for line in lines] == [
        ("spiffe://x/eve", Decision.AUTHZ_DENIED),
        ("alice", Decision.ALLOWED),
    ]


# -- stores that do not answer -------------------------------------------------------------------------------
async def test_a_reply_that_cannot_be_stored_is_answered(here: Serving, nc: Client):
    fields = {headers.MSG_ID: "q1", headers.TARGET: "bob", headers.TYPE: "ask"}
    hello = await here.call("alice", "hello", {})
    fields |= {headers.INSTANCE: hello.result["instance"]}
    fields[headers.DEADLINE] = str(int((time.time() + 30) * 1000))
    assert (await here.call("alice", "request", {}, **fields)).ok
    token = (await here.log())[-1].headers[headers.REPLY_TOKEN]
    js = nc.jetstream()
    config = (await js.stream_info(subjects.REPLIES_STREAM)).config
    config.max_msg_size = 10
    await js.update_stream(config)
    reply = {headers.MSG_ID: "r1", headers.TYPE: "answer", headers.REPLY_TOKEN: token}
    verdict = await here.call("bob", "reply", {"n": 1}, **reply)
    assert verdict.decision is Decision.UNAVAILABLE
    config.max_msg_size = -1
    await js.update_stream(config)
    verdict = await here.call("bob", "reply", {"n": 1}, **reply)
    assert (verdict.ok, verdict.duplicate) == (True, False)
    outcomes = await here.outcomes_of_acts(2)
    assert outcomes == [Outcome.FAILED, Outcome.APPLIED]


async def test_a_state_that_finds_no_room_is_told_so(here: Serving, nc: Client):
    js = nc.jetstream()
    config = (await js.stream_info("KV_state")).config
    config.max_bytes = 3_000
    await js.update_stream(config)
    put = {"op": "put", "revision": 0, "value": {"x": "y" * 5_000}}
    verdict = await here.call("bob", "state", put, **{headers.MSG_ID: "s1"})
    assert (verdict.ok, verdict.retry, verdict.rule) == (False, False, "store")
    assert await here.outcomes_of_acts(1) == [Outcome.FAILED]


async def test_a_state_call_that_is_lost_is_unknown_and_told_to_repeat(here: Serving, lossy: Lossy):
    lossy.lose(lambda subject, _: subject.startswith("$KV.state."))
    put = {"op": "put", "revision": 0, "value": {"x": 1}}
    verdict = await here.call("bob", "state", put, **{headers.MSG_ID: "s1"})
    assert (verdict.decision, verdict.retry) == (Decision.UNAVAILABLE, True)
    assert await here.outcomes_of_acts(1) == [Outcome.UNKNOWN]
