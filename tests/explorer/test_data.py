"""What ``/api`` says is what happened; payloads are in none of it, and a tampered audit does not verify."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from broker_policy.audit.record import DecisionLine
from broker_policy.audit.store import Store
from broker_policy.jetstream import api, get_last
from broker_policy.state_revisions import state_revisions
from mas_nats import Agent
from mas_nats.errors import Refused
from mas_nats.manifest.wanted import WantedAgent
from mas_nats.message import AgentMessage, reply_id
from mas_nats.policy.document import Limits
from mas_nats.wire import subjects
from mas_nats.wire.state_mode import StateMode
from tests.across import two
from tests.explorer.checked import checked
from tests.explorer.conftest import SECRET, Desk, options
from tests.explorer.entries import a_line, decided, many
from tests.explorer.served import Explorer, exploring
from tests.explorer.tampering import a_decision, edit
from tests.system import System, mas

DOCUMENTS = (
    "overview",
    "topology",
    "agents",
    "dead-letters",
    "decisions?limit=200",
    "checkpoints",
    "tokens",
    "verify",
)


class Streaming(Agent[Any]):
    """Answers with some words, each by itself."""

    async def on_message(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            for word in ("a ", "b ", "c "):
                await out.write(word)
                await asyncio.sleep(0.05)  # longer than what is written is gathered for


def until(look: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    """What ``look`` returns once it fits."""
    end = time.monotonic() + 60
    while not fits(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def steps(life: dict[str, Any]) -> list[str]:
    return [step["name"] for step in life["decisions"][0]["steps"]]


def test_the_overview_counts_what_was_decided(explorer):
    def refused(each: dict[str, Any]) -> bool:
        return "AUTHZ_DENIED" in each["decisions"]

    found = until(lambda: explorer.api("overview"), lambda each: each["dead_letters"] == 1 and refused(each))
    assert found["decisions"]["AUTHZ_DENIED"] == 1
    assert found["workers"] == 2
    assert found["agents"] == 2
    assert {each["name"]: each["ok"] for each in found["health"]}["NATS"]
    refusals = explorer.api("decisions?decision=AUTHZ_DENIED")["decisions"]
    assert [each["message_id"] for each in refusals] == ["refused-1"]


def test_the_topology_has_an_edge_for_each_who_sent_to_whom(explorer):
    found = explorer.api("topology")
    assert {node["name"] for node in found["nodes"]} == {"asker", "desk"}
    edges = {(edge["from"], edge["to"]) for edge in found["edges"]}
    assert edges == {("asker", "desk"), ("desk", "asker"), ("asker", "asker")}


def test_agents_are_listed_with_their_numbers(explorer):
    found = {each["agent"]: each for each in explorer.api("agents")["agents"]}
    assert found["asker"]["refused"] == 1
    assert found["desk"]["dead_letters"] == 1
    assert found["desk"]["instances"] == 0
    assert found["desk"]["circuit"] == "closed"


async def test_agents_have_the_revision_of_their_state(system: System):
    """Written through policy or directly, removed or never there: as the bucket has it, and no content."""
    agents = {name: WantedAgent() for name in ("mediated", "none", "removed")}
    namespace = await system.namespace({**agents, "direct": WantedAgent(state=StateMode.DIRECT)}, {})
    written = {}
    for name in ("mediated", "removed", "direct"):
        agent: Agent[dict[str, Any]] = Agent(name, **options(system, name, namespace), receive=False)
        async with agent:
            for count in range(2):
                await agent.update_state({"text": SECRET * 2_000, "n": count})
    async with system.tenant(namespace) as nc:
        for name in ("mediated", "removed", "direct"):
            stored = await get_last(nc, "KV_state", subjects.kv_key("state", name))
            assert stored is not None
            assert SECRET.encode() in stored.data  # the control: there is content
            written[name] = stored.sequence
        before = nc.stats["in_bytes"]
        assert await state_revisions(nc) == written
        assert nc.stats["in_bytes"] - before < 10_000
        where = ("--namespace", namespace, "--folder", str(system.layout.root))
        await asyncio.to_thread(mas, "state", "reset", "removed", *where)
        found = await state_revisions(nc)
        assert found["removed"] > written["removed"]
        assert (await api(nc, "CONSUMER.NAMES.KV_state", {}))["consumers"] in (None, [])
    with exploring(system, namespace) as explorer:
        rows = (await asyncio.to_thread(explorer.api, "agents"))["agents"]
    assert {row["agent"]: row["state_revision"] for row in rows} == {**found, "none": 0}


def test_a_request_has_its_life_and_its_reply(explorer, traffic):
    life = until(
        lambda: explorer.api(f"message/{traffic.asked}"),
        lambda each: {"handled", "signed"} <= set(steps(each)) and "not yet" not in str(each),
    )
    assert steps(life)[:2] == ["decided", "audited"]
    assert "committed" in steps(life)
    [reply] = life["related"]
    assert (reply["op"], reply["sender"], reply["target"]) == ("reply", "desk", "asker")
    back = explorer.api(f"message/{reply['message_id']}")
    assert [each["message_id"] for each in back["related"]] == [traffic.asked]


async def test_a_reply_from_another_namespace_and_a_streamed_one_are_found(system: System):
    async with two(system, out={"router": ["B/desk", "desk"]}) as both:
        router, _ = await both.pair()
        await both.start(both.sales, "desk", Streaming)
        abroad = await router.request(both.desk, "ask", {}, id="abroad-1", timeout=30)
        words = [chunk async for chunk in router.stream("desk", "tell", {}, id="told-1")]
        with exploring(system, both.sales) as explorer:

            def related(message: str) -> list[tuple[str, str]]:
                found = explorer.api(f"message/{message}")
                assert found["related_complete"]
                return [(each["op"], each["message_id"]) for each in found["related"]]

            def answered(message: str, count: int) -> list[tuple[str, str]]:
                return until(lambda: related(message), lambda each: len(each) == count)

            assert await asyncio.to_thread(answered, "abroad-1", 1) == [("reply", abroad.message_id)]
            assert await asyncio.to_thread(answered, abroad.message_id, 1) == [("request", "abroad-1")]
            frames = await asyncio.to_thread(answered, "told-1", len(words) + 1)  # the last one ends it
            assert {op for op, _ in frames} == {"frame"}
            for _, frame in frames:
                assert await asyncio.to_thread(answered, frame, 1) == [("request", "told-1")]


async def test_each_death_of_a_message_has_its_own_dead_letter(system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]}, limits=Limits(max_deliver=1))
    where = ("--namespace", namespace, "--folder", str(system.layout.root))
    asker = Agent("asker", **options(system, "asker", namespace))
    async with asker, Desk("desk", **options(system, "desk", namespace)):
        await asker.send("desk", "broken", {}, id="dies-twice")
        with exploring(system, namespace) as explorer:

            def deaths(count: int) -> list[dict[str, Any]]:
                found = until(
                    lambda: explorer.api("message/dies-twice")["decisions"],
                    lambda each: [one["outcome"] for one in each] == ["dead"] * count,
                )
                return [
                    {step["name"]: step["facts"] for step in each["steps"]}.get("buried") for each in found
                ]

            def letters() -> list[int]:
                return [each["sequence"] for each in explorer.api("dead-letters")["dead_letters"]]

            await asyncio.to_thread(until, lambda: explorer.api("dead-letters")["dead_letters"], bool)
            [first] = await asyncio.to_thread(deaths, 1)
            assert first["sequence"] == 1
            await asyncio.to_thread(mas, "dlq", "redrive", "1", *where)
            await asyncio.to_thread(until, letters, lambda each: each == [2])
            first, second = await asyncio.to_thread(deaths, 2)
    assert first is None, "the letter of its first death was redriven, and lies there no more"
    assert (second["sequence"], second["redrives"]) == (2, 1)


async def test_a_request_that_was_not_found_among_the_latest_is_no_missing_one(system: System):
    namespace = await system.namespace([], {})
    call = a_line("note", "request")

    def answer(to: str) -> DecisionLine:
        back = call._replace(op="reply", sender=call.target, target=call.sender)
        return back._replace(message_id=reply_id(call.sender, call.target, to))

    between = [call._replace(message_id=f"between-{number}") for number in range(250)]
    asked = [call._replace(message_id=name) for name in ("early", "late")]
    async with system.redis() as redis:
        store = Store(redis, namespace)
        await decided(
            store, asked[0], *between, asked[1], *(answer(name) for name in ("early", "late", "never"))
        )
    with exploring(system, namespace) as explorer:
        found = {name: explorer.api(f"message/{answer(name).message_id}") for name in ("early", "late")}
        few = await system.namespace([], {})
        async with system.redis() as redis:
            await decided(Store(redis, few), asked[1], answer("never"))
    assert (found["early"]["related"], found["early"]["related_complete"]) == ([], False)
    assert [each["message_id"] for each in found["late"]["related"]] == ["late"]
    assert found["late"]["related_complete"]
    with exploring(system, few) as explorer:  # the control: where all was looked at, it is not there
        life = explorer.api(f"message/{answer('never').message_id}")
    assert (life["related"], life["related_complete"]) == ([], True)


async def test_a_message_has_its_checks_of_tokens_and_tools(system: System, explorer, traffic):
    seen = await checked(system)
    with exploring(system, seen.namespace) as other:

        def what(message: str, fits: Callable[[Any], bool]) -> tuple[list[str], list[tuple[str, ...]]]:
            life = until(lambda: other.api(f"message/{message}"), fits)
            names = ("act", "purpose", "tool", "decision")
            checks = [tuple(each[name] for name in names) for each in life["checks"]]
            return [each["op"] for each in life["decisions"]], checks

        ops, checks = await asyncio.to_thread(what, seen.prompt, lambda life: len(life["checks"]) == 3)
        assert ops == ["send"]
        assert checks == [
            ("issue", "user_input", "", "ALLOWED"),
            ("present", "user_input", "", "ALLOWED"),
            ("present", "user_input", "", "AUTHZ_DENIED"),
        ]
        life = other.api(f"message/{seen.prompt}")
        assert life["checks"][-1]["rule"] == "token:used"
        assert not life["more"]
        _, checks = await asyncio.to_thread(what, seen.tool, lambda life: life["checks"])
        assert checks == [("exchange", "tool_call", "transfer_money", "ALLOWED")]
        ops, checks = await asyncio.to_thread(what, seen.blocked, lambda life: life["checks"])
        assert (ops, checks) == ([], [("exchange", "tool_call", "no_such_tool", "AUTHZ_DENIED")])
        assert other.api(f"message/{seen.blocked}")["checks"][0]["rule"].startswith("BLOCK:")
    assert explorer.api(f"message/{traffic.asked}")["checks"] == []  # the control: no token was asked for


def test_a_refused_message_says_by_which_rule(explorer, traffic):
    life = explorer.api(f"message/{traffic.refused}")
    assert steps(life)[0] == "refused"
    assert "AUTHZ_DENIED" in life["decisions"][0]["steps"][0]["text"]
    assert "committed" not in steps(life)


def test_a_dead_message_is_found_among_the_dead_letters(explorer, traffic):
    [letter] = explorer.api("dead-letters?agent=desk")["dead_letters"]
    assert letter["message_id"] == traffic.dead
    assert letter["attempts"] == 1
    assert explorer.api("dead-letters?agent=asker")["dead_letters"] == []
    life = until(lambda: explorer.api(f"message/{traffic.dead}"), lambda each: "buried" in steps(each))
    assert "dead" in steps(life)


async def test_no_document_holds_a_payload(system, explorer, traffic):
    paths = (*DOCUMENTS, *(f"message/{each}" for each in (traffic.asked, traffic.refused, traffic.dead)))
    for path in paths:
        answer = await asyncio.to_thread(explorer.ask, f"/api/{path}")
        assert answer.status == 200
        assert SECRET.encode() not in answer.body
        assert b"reply_token" not in answer.body.lower()
    async with system.tenant(traffic.namespace) as nc:  # the control: it was sent, and lies there
        letter = await get_last(nc, subjects.DLQ_STREAM, subjects.dead_letter("desk"))
    assert letter is not None
    assert SECRET.encode() in letter.data


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("message/nobody-sent-this", 404, "no decision about this message id"),
        ("decisions?outcome=eaten", 400, "is no outcome"),
        ("decisions?from=yesterday", 400, "is not a time"),
        ("decisions?limit=many", 400, "limit must be a whole number"),
        ("decisions?within=forever", 400, "within must be a whole number"),
        ("dead-letters?agent=*", 400, "agent id"),
    ],
)
def test_what_cannot_be_answered_says_why(explorer, path, status, text):
    answer = explorer.ask(f"/api/{path}")
    assert answer.status == status
    assert text in answer.json()["error"]["text"]


def test_pages_of_decisions_follow_each_other(explorer):
    everything = [row["index"] for row in explorer.api("decisions?limit=200")["decisions"]]
    found: list[int] = []
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        cursor = f"&cursor={page['next']}" if page["next"] else ""
        page = explorer.api(f"decisions?limit=3{cursor}")
        found += [row["index"] for row in page["decisions"]]
    assert found == everything


async def test_a_search_that_takes_too_long_says_so_and_goes_on(system: System):
    namespace = await system.namespace([], {})
    async with system.redis() as redis:
        await many(Store(redis, namespace))
    never, rare = "decision=ALLOWED&violation=default", "violation=dlp:phone&target=agent-07"
    with exploring(system, namespace) as explorer:

        def walked(query: str) -> tuple[int, list[Any], list[int]]:
            found: list[Any] = []
            looked: list[int] = []
            page = explorer.api(f"decisions?{query}")
            while True:
                found += page["decisions"]
                if page["next"] is None:
                    assert page["complete"]
                    return len(looked) + 1, found, looked
                assert page["complete"] == (page["looked_to"] is None)
                if not page["complete"]:
                    looked.append(page["looked_to"]["index"])
                    assert page["next"] == looked[-1]
                    assert abs(page["looked_to"]["time"] / 1000 - time.time()) < 3600
                page = explorer.api(f"decisions?{query}&cursor={page['next']}")

        steps, found, looked = await asyncio.to_thread(walked, f"{never}&within=0")
        assert found == []
        assert steps > 3
        assert looked == sorted(looked, reverse=True)
        assert await asyncio.to_thread(walked, f"{never}&within=10000") == (1, [], [])  # the control
        bounded = await asyncio.to_thread(walked, f"{rare}&within=0&limit=3")
        whole = await asyncio.to_thread(walked, f"{rare}&within=10000&limit=200")
    assert bounded[1] == whole[1] != []


async def test_a_decision_is_streamed_as_it_is_made_and_filters_hold(system: System, explorer, traffic):
    """Within how many seconds a browser shows it is measured in ``test_pages``."""

    def stream(query: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", explorer.port, timeout=60)
        connection.request("GET", f"/api/live?{query}")
        return connection, connection.getresponse()

    def next_row(answer: Any) -> dict[str, Any]:
        while not (line := answer.readline()).startswith(b'data: {"index'):
            assert line, "the stream ended"
        return dict(json.loads(line.removeprefix(b"data: ")))

    def past(answer: Any) -> None:
        while answer.readline() != b"event: ready\n":
            pass

    connection, answer = await asyncio.to_thread(stream, "decision=refused&sender=asker")
    with closing(connection):
        await asyncio.to_thread(past, answer)
        asker = Agent("asker", **options(system, "asker", traffic.namespace), receive=False)
        async with asker:
            await asker.send("desk", "note", {}, id="allowed-2")
            with pytest.raises(Refused):
                await asker.send("asker", "note", {}, id="refused-2")
            row = await asyncio.to_thread(next_row, answer)
    assert row["message_id"] == "refused-2"  # the allowed one before it was left out


async def test_a_tampered_entry_makes_verification_fail(system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]})
    async with Agent("asker", **options(system, "asker", namespace), receive=False) as asker:
        for _ in range(3):
            await asker.send("desk", "note", {})
    with exploring(system, namespace) as explorer:
        async with system.redis() as redis:
            index = await a_decision(redis, namespace)
            before = await asyncio.to_thread(explorer.api, "verify")
            assert before["intact"]
            assert before["entries"] >= index
            await edit(redis, namespace, index)
        after = await asyncio.to_thread(explorer.api, "verify")
    assert not after["intact"]
    assert any(finding["index"] == index for finding in after["findings"])


async def test_an_audit_that_redis_lost_is_seen_in_the_overview(system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]})

    def signer(explorer: Explorer) -> dict[str, Any]:
        return next(each for each in explorer.api("overview")["health"] if each["name"] == "Signer")

    async with Agent("asker", **options(system, "asker", namespace), receive=False) as asker:
        await asker.send("desk", "note", {})
    with exploring(system, namespace) as explorer:
        signed = await asyncio.to_thread(
            until, lambda: signer(explorer), lambda said: "up to" in said["text"]
        )
        assert signed["ok"]
        async with system.redis() as redis, asyncio.timeout(60):
            keys = f"{Store(redis, namespace).layout.prefix}*"
            found = signed
            while found["ok"]:  # what is in the log still is projected again, the same
                await redis.delete(*[key async for key in redis.scan_iter(keys)])
                found = await asyncio.to_thread(signer, explorer)
    assert "was signed, but the chain ends at" in found["text"]
