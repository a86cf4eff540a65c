"""Messages between namespaces: both sides decide, both audits say so, and neither can be talked round."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_policy.audit.disclosure import disclose, read_salt
from broker_policy.calls.crossing import MOST_REFUSED
from broker_policy.dead_letters.letters import Wanted, letters
from broker_policy.dead_letters.operations import Operations
from mas_nats import (
    Agent,
    AgentMessage,
    CircuitOpen,
    DataBlocked,
    IdReused,
    PermissionDenied,
    RateLimited,
    Reject,
    RequestFailed,
    RequestTimeout,
)
from mas_nats.policy.document import Limits
from mas_nats.policy.governance import CircuitBreaker, Dlp, DlpAction, DlpRule, Governance, RateLimits
from tests.across import Desk, Two, two
from tests.load import audit_of, audited
from tests.system import System, mas, mas_json


async def test_send_and_request_and_reply(system: System) -> None:
    async with two(system) as both:
        router, desk = await both.pair()
        sent = await router.send(both.desk, "note", {"n": 1})
        answer = await router.request(both.desk, "ask", {"n": 2}, timeout=10)
        assert answer.data == {"heard": {"n": 2}}
        assert answer.sender == both.desk
        assert [message.sender for message in desk.got] == [both.router, both.router]
        assert [message.target for message in desk.got] == ["desk", "desk"]
        asked = desk.got[1].message_id
        for message_id, op in ((sent, "send"), (asked, "request")):
            [left] = await both.decisions(both.sales, message_id)
            [came] = await both.decisions(both.billing, message_id)
            assert (left["f"], left["t"], left["o"], left["d"]) == ("router", both.desk, op, "ALLOWED")
            assert (came["f"], came["t"], came["o"], came["d"]) == (both.router, "desk", op, "ALLOWED")
            assert (left["outcome"], came["outcome"]) == ("a", "h")
            assert left["x"] == came["x"], "the certificate"
            message = next(each for each in desk.got if each.message_id == message_id)
            for told in disclose([left, came], read_salt(message.salt), message.body):
                assert told.matches, "what the receiver kept opens the commitment of either side"
        reply = answer.message_id
        [left] = await both.decisions(both.billing, reply)
        [came] = await both.decisions(both.sales, reply)
        assert (left["f"], left["t"], left["outcome"]) == ("desk", both.router, "a")
        assert (came["f"], came["t"], came["outcome"]) == (both.desk, "router", "a")
        both.verify()
        asking = ("--folder", str(system.layout.root), "--namespace", both.billing)
        found = mas_json("audit", "query", "--sender", both.router, "--message-id", sent, *asking)
        assert [each["target"] for each in found["decisions"]] == ["desk"]


@pytest.mark.parametrize(
    "rules",
    [
        {"out": {}},
        {"out": {"router": ["*"]}},
        {"out": {"router": ["desk"]}},
        {"block_out": {"router": ["B/desk"]}},
        {"block_out": {"router": ["B/*"]}},
        {"block_out": {"router": ["*"]}},
    ],
    ids=["nothing", "everybody at home", "namesake", "blocked", "namespace blocked", "all blocked"],
)
async def test_what_the_sender_s_side_refuses_never_shows_on_the_other(system: System, rules: Any) -> None:
    async with two(system, **rules) as both:
        router, desk = await both.pair()
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {"n": 1})
        [left] = await both.decisions(both.sales, refused.value.message_id)
        assert (left["d"], left["outcome"]) == ("AUTHZ_DENIED", "r")
        assert await both.unheard_of(desk, both.billing, refused.value.message_id)
        assert not desk.got
        both.verify()


@pytest.mark.parametrize(
    "rules",
    [
        {"accepts": {}},
        {"accepts": {"router": ["desk"]}},
        {"accepts": {"S/desk": ["desk"]}},
        {"accepts": {"S/router": ["router"]}},
        {"block_in": {"S/router": ["desk"]}},
        {"block_in": {"S/*": ["*"]}},
    ],
    ids=["nothing", "its own router", "another sender", "another target", "blocked", "namespace blocked"],
)
async def test_what_the_other_side_refuses_is_in_both(system: System, rules: Any) -> None:
    async with two(system, **rules) as both:
        router, desk = await both.pair()
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {"n": 1})
        assert refused.value.verdict.rule == "not_accepted"
        [left] = await both.decisions(both.sales, refused.value.message_id)
        [came] = await both.decisions(both.billing, refused.value.message_id)
        assert (left["d"], left["r"], left["outcome"]) == ("AUTHZ_DENIED", "not_accepted", "r")
        assert (came["d"], came["f"], came["outcome"]) == ("AUTHZ_DENIED", both.router, "r")
        assert not desk.got
        both.verify()


async def test_one_refusal_for_all_that_is_missing_there(system: System) -> None:
    out = {"router": ["B/desk", "B/router", "B/ghost", "nowhere/desk"]}
    async with two(system, out=out) as both:
        router, _ = await both.pair()
        told = []
        for target in (f"{both.billing}/router", f"{both.billing}/ghost", "nowhere/desk"):
            with pytest.raises(PermissionDenied) as refused:
                await router.send(target, "note", {})
            text = str(refused.value).replace(target, "TARGET").replace(both.router, "SENDER")
            told.append(text.replace(target.rpartition("/")[2], "AGENT"))
            assert not {"exist", "unknown"} & set(text.lower().split())
        assert len(set(told)) == 1
        await router.send(both.desk, "note", {})  # the control: another answer where it is accepted


async def test_the_commands_know_both_sides(system: System) -> None:
    out = {"router": ["B/desk", "B/router"]}
    async with two(system, out=out) as both:
        here = ("--folder", str(system.layout.root), "--namespace", both.sales)
        shown = mas_json("policy", "show", "--across", *here)
        assert {each["target"]: each["other_side"] for each in shown["rules"]} == {
            both.desk: "agrees",
            f"{both.billing}/router": "refuses",
        }
        assert mas_json("policy", "check", "router", both.desk, *here)["decision"] == "ALLOWED"
        there = ("--folder", str(system.layout.root), "--namespace", both.billing)
        assert mas_json("policy", "check", both.router, "desk", *there)["decision"] == "ALLOWED"
        for sender, target, where, step in (
            ("router", f"{both.billing}/router", here, "other_side"),
            ("router", "nowhere/desk", here, "authorize"),
            (f"{both.sales}/desk", "desk", there, "identity"),
        ):
            told = mas("policy", "check", sender, target, *where, check=False)
            assert told.returncode == 1
            assert [step, "refuses"] in [line.split()[:2] for line in told.stdout.splitlines()]


# -- ids ---------------------------------------------------------------------------------------------------
async def test_an_id_belongs_to_its_sender_in_its_namespace(system: System) -> None:
    out = {"router": ["desk", "B/desk"]}
    async with two(system, out=out, accepts={"S/router": ["desk"], "router": ["desk"]}) as both:
        router, desk = await both.pair()
        namesake, at_home = await both.start(both.billing, "router"), await both.start(both.sales, "desk")
        for sender, target, body in (
            (router, "desk", {"n": 1}),
            (router, both.desk, {"n": 2}),
            (namesake, "desk", {"n": 3}),
        ):
            await sender.send(target, "note", body, id="same")
        await router.send(both.desk, "note", {"n": 2}, id="same")  # a repetition
        with pytest.raises(IdReused):
            await router.send(both.desk, "note", {"n": 9}, id="same")
        answers = await asyncio.gather(
            router.request("desk", "ask", {"n": 4}, id="asked", timeout=10),
            router.request(both.desk, "ask", {"n": 5}, id="asked", timeout=10),
            namesake.request("desk", "ask", {"n": 6}, id="asked", timeout=10),
        )
        assert [answer.data["heard"]["n"] for answer in answers] == [4, 5, 6]
        assert [answer.sender for answer in answers] == ["desk", both.desk, "desk"]
        got = sorted((message.sender, message.data["n"]) for message in desk.got)
        assert got == [("router", 3), ("router", 6), (both.router, 2), (both.router, 5)]
        assert sorted(message.data["n"] for message in at_home.got) == [1, 4]


# -- limits ------------------------------------------------------------------------------------------------
def limited(**limits: int) -> Governance:
    return Governance(rate_limit=RateLimits(**limits))


async def test_the_sender_s_limits_hold_for_what_leaves(system: System) -> None:
    async with two(system, out={"router": ["B/desk", "desk"]}, governance_out=limited(per_hour=3)) as both:
        router, desk = await both.pair()
        for number in range(3):
            await router.send(both.desk, "note", {"n": number})
        with pytest.raises(RateLimited) as refused:
            await router.send(both.desk, "note", {"n": 3})
        with pytest.raises(RateLimited):
            await router.send("desk", "note", {"n": 4})
        assert await both.unheard_of(desk, both.billing, refused.value.message_id)
        assert {message.data["n"] for message in desk.got} == {0, 1, 2}


async def test_the_limits_of_the_other_side_hold_for_what_comes(system: System) -> None:
    accepts = {"S/router": ["desk"], "router": ["desk"]}
    async with two(system, accepts=accepts, governance_in=limited(per_hour=2)) as both:
        router, _ = await both.pair()
        namesake = await both.start(both.billing, "router")
        for number in range(2):
            await router.send(both.desk, "note", {"n": number})
        with pytest.raises(RateLimited) as refused:
            await router.send(both.desk, "note", {"n": 2})
        assert refused.value.retry_after > 0
        await namesake.send("desk", "note", {"n": 3})  # its limit is its own
        allowed, told = await both.decisions(both.sales, refused.value.message_id)
        assert (allowed["d"], allowed["outcome"]) == ("ALLOWED", "f")
        assert (told["d"], told["outcome"]) == ("RATE_LIMITED", "r")
        [came] = await both.decisions(both.billing, refused.value.message_id)
        assert (came["d"], came["f"], came["outcome"]) == ("RATE_LIMITED", both.router, "r")


async def test_replies_are_never_limited(system: System) -> None:
    limits = limited(per_hour=1)
    accepts = {"S/router": ["desk"], "desk": ["router"]}
    async with two(system, accepts=accepts, governance_in=limits, governance_out=limits) as both:
        router, desk = await both.pair()
        await desk.send("router", "note", {})  # its one message
        answer = await router.request(both.desk, "ask", {}, timeout=10)
        assert answer.sender == both.desk
        with pytest.raises(RateLimited):
            await desk.send("router", "note", {})
        with pytest.raises(RateLimited):
            await router.send(both.desk, "note", {})


async def test_what_is_not_accepted_does_not_fill_the_other_audit(system: System) -> None:
    async with two(system, accepts={}) as both:
        router, desk = await both.pair()
        clock = asyncio.get_running_loop().time
        began, count, refusals, limited_ = clock(), 1_000, set(), 0

        async def work(numbers: Any) -> None:
            nonlocal limited_
            for _ in numbers:
                try:
                    await router.send(both.desk, "note", {})
                except RateLimited:
                    limited_ += 1
                except PermissionDenied as refused:
                    refusals.add(refused.message_id)

        numbers = iter(range(count))
        await asyncio.gather(*(work(numbers) for _ in range(64)))
        seconds = int(clock() - began) + 2
        assert limited_ > 0
        assert not await both.unheard_of(desk, both.billing, next(iter(refusals)))
        audit = await audit_of(system, both.billing, refusals)
        heard = [each for found in audit["decisions"].values() for each in found if "/" in each["f"]]
        assert len(heard) == len(refusals) <= 2 * MOST_REFUSED * seconds  # two workers
        at_home = await audit_of(system, both.sales, refusals)
        assert sum(len(found) for found in at_home["decisions"].values()) >= count


class Failing(Desk):
    """Its handler raises."""

    async def on_message(self, message: AgentMessage) -> None:
        raise RuntimeError("no")


async def test_the_circuit_of_an_agent_is_open_for_others_too(system: System) -> None:
    breaking = Governance(circuit_breaker=CircuitBreaker(failure_threshold=2))
    limits = Limits(retry_delay=0.1, retry_delay_max=0.1, max_deliver=2)
    async with two(system, governance_in=breaking, limits=limits) as both:
        router = await both.start(both.sales, "router")
        await both.start(both.billing, "desk", Failing)

        async def until_refused() -> CircuitOpen:
            while True:
                try:
                    await router.send(both.desk, "note", {})
                except CircuitOpen as refused:
                    return refused
                await asyncio.sleep(0.1)

        refused = await asyncio.wait_for(until_refused(), 30)
        assert refused.retry_after > 0
        allowed, told = await both.decisions(both.sales, refused.message_id)
        assert (allowed["d"], allowed["outcome"], told["d"]) == ("ALLOWED", "f", "CIRCUIT_OPEN")
        [came] = await both.decisions(both.billing, refused.message_id)
        assert (came["d"], came["f"]) == ("CIRCUIT_OPEN", both.router)


# -- content -----------------------------------------------------------------------------------------------
def blocking(word: str) -> Governance:
    rule = DlpRule(id=word, type=word, pattern=word.upper(), action=DlpAction.BLOCK)
    return Governance(dlp=Dlp(rules=(rule,)))


async def test_both_sides_search_what_is_said(system: System) -> None:
    async with two(system, governance_out=blocking("ours"), governance_in=blocking("theirs")) as both:
        router, desk = await both.pair()
        for word, side in (("OURS", "left"), ("THEIRS", "came")):
            with pytest.raises(DataBlocked) as refused:
                await router.send(both.desk, "note", {"text": word})
            assert word not in str(refused.value)
            found = await both.decisions(both.sales, refused.value.message_id)
            assert found[-1]["d"] == "DLP_BLOCKED"
            if side == "left":
                assert len(found) == 1
                assert await both.unheard_of(desk, both.billing, refused.value.message_id)
            else:
                assert (found[0]["d"], found[0]["outcome"]) == ("ALLOWED", "f")
                [came] = await both.decisions(both.billing, refused.value.message_id)
                assert came["d"] == "DLP_BLOCKED"
        assert not desk.got
        await router.send(both.desk, "note", {"text": "nothing"})
        both.verify()


async def test_large_content_is_searched_on_both_sides(system: System) -> None:
    """What takes long is searched apart, of messages and of replies, and by the rules of each side."""
    large = "\u00e9" * 200_000
    async with two(system, governance_out=blocking("ours"), governance_in=blocking("theirs")) as both:
        router, _ = await both.pair()
        answer = await router.request(both.desk, "ask", {"text": large}, timeout=60)
        assert answer.data == {"heard": {"text": large}}
        for word in ("OURS", "THEIRS"):
            with pytest.raises(DataBlocked):
                await router.send(both.desk, "note", {"text": f"{large} {word} {large}"})


class Saying(Desk):
    """Answers with what it was told to say."""

    async def on_message(self, message: AgentMessage) -> None:
        await message.reply("answer", {"text": message.data["say"]})


async def test_both_sides_search_a_reply(system: System) -> None:
    async with two(system, governance_out=blocking("ours"), governance_in=blocking("theirs")) as both:
        router = await both.start(both.sales, "router")
        await both.start(both.billing, "desk", Saying)
        for say in ("O" + "urs", "nothing"):
            answer = await router.request(both.desk, "ask", {"say": say}, timeout=10)
            assert answer.data == {"text": say}

        class Shouting(Saying):
            async def on_message(self, message: AgentMessage) -> None:
                await message.reply("answer", {"text": message.data["say"].upper()})

        await both.start(both.billing, "router", Shouting)
        await both.permit(both.sales, "router", [f"{both.billing}/router"])
        await both.permit(both.billing, both.router, ["router"])
        for word in ("ours", "theirs"):  # the handler lets the error pass, so the request is dead
            with pytest.raises(RequestFailed):
                await router.request(f"{both.billing}/router", "ask", {"say": word}, timeout=10)
        assert (await router.request(f"{both.billing}/router", "ask", {"say": "x"}, timeout=10)).data


async def test_what_one_side_redacts_the_other_gets_redacted(system: System) -> None:
    async with two(system) as both:
        router, desk = await both.pair()
        sent = await router.send(both.desk, "note", {"text": "219-09-9999"})
        await desk.arrived.wait()
        assert "219-09-9999" not in str(desk.got[0].data)
        [left] = await both.decisions(both.sales, sent)
        assert left["d"] == "DLP_REDACTED"


# -- dead letters, policy that changes ---------------------------------------------------------------------
class Closed(Desk):
    """Rejects everything while it is closed."""

    closed = True

    async def on_message(self, message: AgentMessage) -> None:
        if self.closed:
            raise Reject("closed")
        await super().on_message(message)


async def dead(both: Two, namespace: str) -> list[Any]:
    async with both.system.tenant(namespace) as nc:
        return [letter async for letter in letters(nc, Wanted())]


async def test_dead_letters_lie_with_the_target_and_are_redriven_by_both_rights(system: System) -> None:
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        desk = await both.start(both.billing, "desk", Closed)
        with pytest.raises(RequestFailed, match="desk could not handle"):
            await router.request(both.desk, "ask", {"n": 1}, timeout=20)
        [letter] = await dead(both, both.billing)
        assert letter.text("Mas-Sender") == both.router
        assert await dead(both, both.sales) == []
        desk.closed = False

        async def redrive() -> dict[str, Any]:
            async with system.tenant(both.billing) as nc:
                [row] = [row async for row in Operations(nc, "olga").redrive([letter.sequence])]
            return row

        await both.permit(both.sales, "router", [])
        assert (await redrive())["rule"] == "sender_side"
        await both.permit(both.sales, "router", [both.desk])
        await both.permit(both.billing, both.router, [])
        assert (await redrive())["decision"] == "AUTHZ_DENIED"
        await both.permit(both.billing, both.router, ["*"], ["desk"])
        assert (await redrive())["rule"] == "blocked_targets"
        assert not desk.got
        await both.permit(both.billing, both.router, ["desk"])
        assert (await redrive())["status"] == "redriven"
        async with asyncio.timeout(10):
            await desk.arrived.wait()
        assert desk.got[0].sender == both.router
        both.verify()


class Slow(Desk):
    """Answers when it may."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.may = asyncio.Event()
        self.begun: list[str] = []

    async def on_message(self, message: AgentMessage) -> None:
        self.begun.append(message.message_id)
        await self.may.wait()
        await super().on_message(message)


async def test_policy_that_is_withdrawn_while_messages_wait(system: System) -> None:
    """What was accepted is kept, and a question may be answered; nothing new passes."""
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        waiting = await router.send(both.desk, "note", {"n": 1})
        desk = await both.start(both.billing, "desk", Slow)
        asking = asyncio.create_task(router.request(both.desk, "ask", {"n": 2}, timeout=30))
        async with asyncio.timeout(10):
            while len(desk.begun) < 2:
                await asyncio.sleep(0.02)
        for namespace, sender in ((both.sales, "router"), (both.billing, both.router)):
            await both.permit(namespace, sender, [])
            with pytest.raises(PermissionDenied):
                await router.send(both.desk, "note", {"n": 3})
        desk.may.set()
        assert (await asking).data == {"heard": {"n": 2}}
        assert waiting in {message.message_id for message in desk.got}
        assert {message.data["n"] for message in desk.got} == {1, 2}


async def test_a_namespace_that_is_removed(system: System) -> None:
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        await both.start(both.billing, "desk", Closed)
        await system.without_policy([both.billing])
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {})
        assert refused.value.verdict.rule == "not_accepted"
        [left] = await both.decisions(both.sales, refused.value.message_id)
        assert (left["d"], left["outcome"]) == ("AUTHZ_DENIED", "r")


# -- what does not cross -----------------------------------------------------------------------------------
class Telling(Desk):
    async def on_message(self, message: AgentMessage) -> None:
        async with message.reply_stream() as out:
            for word in ("once ", "upon ", "a time"):
                await out.write(word)


async def test_a_streamed_reply_comes_whole(system: System) -> None:
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        await both.start(both.billing, "desk", Telling)
        chunks = [chunk async for chunk in router.stream(both.desk, "tell", {}, timeout=10)]
        assert chunks == [{"text": "once upon a time"}]


async def test_a_delayed_message_crosses_when_it_is_due(system: System) -> None:
    async with two(system) as both:
        router, desk = await both.pair()
        sent = await router.send(both.desk, "note", {"n": 1}, delay=0.5)
        cancelled = await router.send(both.desk, "note", {"n": 2}, delay=60)
        assert await router.cancel(cancelled)
        async with asyncio.timeout(10):
            await desk.arrived.wait()
        assert [(message.message_id, message.sender) for message in desk.got] == [(sent, both.router)]
        await audited(system, both.sales, "release", 1)  # the first decision is settled before it is made
        held, released = await both.decisions(both.sales, sent)
        [came] = await both.decisions(both.billing, sent)
        assert [(each["o"], each["t"], each["outcome"]) for each in (held, released)] == [
            ("delay", both.desk, "a"),
            ("release", both.desk, "a"),
        ]
        assert (came["o"], came["f"], came["outcome"]) == ("release", both.router, "h")
        both.verify()


@pytest.mark.parametrize("side", ["left", "came"])
async def test_a_delayed_message_that_is_refused_when_due(system: System, side: str) -> None:
    """It was never with the other side, so its dead letter lies with the sender's."""
    async with two(system) as both:
        router, desk = await both.pair()
        sent = await router.send(both.desk, "note", {"n": 1}, delay=1.5)
        if side == "left":
            await both.permit(both.sales, "router", [])
        else:
            await both.permit(both.billing, both.router, [])
        async with asyncio.timeout(15):
            while not (found := await dead(both, both.sales)):
                await asyncio.sleep(0.1)
        assert found[0].text("Mas-Message-Id") == sent
        assert found[0].agent == both.desk
        assert await dead(both, both.billing) == []
        async with system.tenant(both.sales) as nc:
            [row] = [row async for row in Operations(nc, "olga").redrive([found[0].sequence])]
        assert (row["status"], row["rule"]) == ("kept", "cross_namespace")
        if side == "left":
            assert await both.unheard_of(desk, both.billing, sent)
        else:
            [came] = await both.decisions(both.billing, sent)
            assert (came["d"], came["outcome"]) == ("AUTHZ_DENIED", "r")
        assert not desk.got
        both.verify()


async def test_a_delayed_message_that_is_not_accepted_now(system: System) -> None:
    async with two(system, accepts={}) as both:
        router, _ = await both.pair()
        with pytest.raises(PermissionDenied) as refused:
            await router.send(both.desk, "note", {}, delay=60)
        assert refused.value.verdict.rule == "not_accepted"
        for namespace in (both.sales, both.billing):
            [told] = await both.decisions(namespace, refused.value.message_id)
            assert (told["o"], told["outcome"]) == ("delay", "r")


async def test_a_request_that_nobody_answers_times_out(system: System) -> None:
    async with two(system) as both:
        router = await both.start(both.sales, "router")
        with pytest.raises(RequestTimeout):
            await router.request(both.desk, "ask", {}, timeout=1)
        desk = await both.start(both.billing, "desk")
        later = await router.send(both.desk, "note", {})
        async with asyncio.timeout(10):
            await desk.arrived.wait()
        assert [message.message_id for message in desk.got] == [later], "an expired request is not handled"


async def test_the_full_name_of_an_agent_at_home_is_the_agent(system: System) -> None:
    async with two(system, out={"router": ["desk"]}) as both:
        router = await both.start(both.sales, "router")
        at_home: Agent[Any] = await both.start(both.sales, "desk")
        answer = await router.request(f"{both.sales}/desk", "ask", {"n": 1}, timeout=10)
        assert answer.sender == "desk"
        assert isinstance(at_home, Desk)
        assert at_home.got[0].sender == "router"
