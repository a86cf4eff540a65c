"""Token calls from inside: of a worker without a key, of whom policy says nothing, of who makes too many."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from broker_policy import service
from broker_policy.tenants.sealing_ring import SealingRing
from broker_policy.tokens.shares import NoRoom, Shares
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision, Verdict
from tests.audit_log import NAMESPACE
from tests.serving import SEALING_KEY, Serving, document, serving

EXCHANGE = {"do": "exchange", "purpose": "tool_call", "target": "bob", "tool": "pay"}


@pytest.fixture
async def here(nc: Client) -> AsyncIterator[Serving]:
    async with serving(nc) as up:
        yield up


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ({"do": "keys"}, "no_key"),
        ({"do": "present", "token": "a.b.c", "presentation": "p"}, "no_key"),
        ({"do": "selected", "token": "a.b.c", "tools": ["pay"]}, "no_key"),
        ({"do": "issue", "target": "bob", "prompt": "pay"}, "token:no_input"),
        (EXCHANGE, "token:application_type"),
        ({**EXCHANGE, "purpose": "llm_access"}, "token:application_type"),
        ({**EXCHANGE, "purpose": "user_input"}, "token"),
        ({**EXCHANGE, "tool": "a tool"}, "token"),
        ({}, "token"),
        (b"\xff", "token"),
    ],
)
async def test_nothing_is_given(here: Serving, body: object, rule: str):
    verdict = await here.call("alice", "token", body, **{headers.MSG_ID: "m1"})
    assert not verdict.ok
    assert verdict.rule == rule
    assert not verdict.result


async def test_without_an_id(here: Serving):
    assert (await here.call("alice", "token", {"do": "keys"})).rule == "message_id"


# -- what one agent may leave behind ---------------------------------------------------------------------
AGE = 310.0


class Bucket:
    """Shares of 100 marks and the clock that they go by."""

    def __init__(self, workers: int = 1) -> None:
        self.at = 0.0
        self.shares = Shares(100, AGE, workers=lambda: workers, now=lambda: self.at)

    def fill(self, agent: str) -> int:
        """Take one after the other; how many it got."""
        for taken in range(101):
            try:
                self.shares.take(agent, 1)
            except NoRoom:
                return taken
        raise AssertionError("more than there are")


def test_nobody_takes_what_is_left_for_all_others():
    bucket = Bucket()
    assert not bucket.shares.used
    assert [bucket.fill(name) for name in "abcd"] == [50, 25, 12, 6]
    assert bucket.shares.used
    with pytest.raises(NoRoom) as full:
        bucket.shares.require("a", 1)
    assert AGE <= full.value.wait <= AGE + 10
    bucket.shares.require("e", 3)
    with pytest.raises(NoRoom):
        bucket.shares.take("e", 8)  # as a whole, or not at all
    assert bucket.fill("e") == 3
    bucket.at = full.value.wait
    assert not bucket.shares.used
    assert bucket.fill("a") == 50


def test_each_worker_has_its_part():
    assert Bucket(workers=4).fill("a") == 12


def test_what_was_not_left_is_not_counted():
    bucket = Bucket()
    for _ in range(1000):
        bucket.shares.take("a", 1)
        bucket.shares.give_back("a")
    bucket.shares.give_back("nobody")
    assert bucket.fill("a") == 50


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.floats(0, 40)), max_size=60))
def test_marks_that_are_kept_are_counted(left: list[tuple[str, int, float]]):
    """Whatever is taken and when, never more lies there than there may, nor more of one than of the rest."""
    bucket, kept = Bucket(), list[tuple[str, int, float]]()
    for agent, count, later in left:
        bucket.at += later
        try:
            bucket.shares.take(agent, count)
        except NoRoom:
            continue
        kept.append((agent, count, bucket.at))
        there = [each for each in kept if each[2] + AGE > bucket.at]
        assert sum(each[1] for each in there) <= 100
        for name in "abc":
            assert sum(each[1] for each in there if each[0] == name) <= 50


async def test_one_agent_does_not_keep_the_others_from_using_tokens(
    nc: Client, monkeypatch: pytest.MonkeyPatch
):
    """What it uses, selects and is given: told when it is too much, and when there is room."""
    monkeypatch.setattr(service, "MOST_MARKS", 20)
    kinds = {"alice": ApplicationType.AGENT, "bob": ApplicationType.AGENT, "pay": ApplicationType.MCP_SERVER}
    tools = {"pay": {"one": "", "two": ""}}
    tokens = TokenPolicy(
        checks=(),
        applications={
            name: ApplicationPolicy(type=kind, tools=tools.get(name, {})) for name, kind in kinds.items()
        },
    )
    policy = document(tuple(kinds)).model_copy(update={"tokens": tokens})
    async with serving(nc, policy, token_ring=SealingRing(SEALING_KEY)) as here:

        async def tell(agent: str, body: dict[str, object]) -> Verdict:
            return await here.call(agent, "token", body, **{headers.MSG_ID: f"m{next(ids)}"})

        async def access(agent: str) -> Verdict:
            return await tell(agent, {"do": "exchange", "purpose": "llm_access"})

        async def selected(agent: str, *tools: str) -> Verdict:
            token = (await access(agent)).result["token"]
            return await tell(agent, {"do": "selected", "token": token, "tools": tools})

        ids = itertools.count()
        for _ in range(2):  # a mark for the token, one for the answer, one for each tool
            assert (await selected("alice", "one", "two", "none")).ok
        first, second = [(await access("alice")).result["token"] for _ in range(2)]
        assert (await tell("alice", {"do": "selected", "token": first, "tools": ()})).ok
        full = await tell("alice", {"do": "selected", "token": second, "tools": ()})
        assert (full.decision, full.rule, full.retry) == (Decision.RATE_LIMITED, "token:marks", True)
        assert 300 < full.retry_after < 330
        assert (await access("alice")).rule == "token:marks"  # before its model is asked
        info = await nc.jetstream().stream_info(subjects.kv_stream(subjects.TOKENS_BUCKET))
        assert info.state.messages == 6  # three tokens; of one request the same answer, and the same tools
        # What somebody is shown is counted for whoever got the token, and once.
        body = {"do": "exchange", "purpose": "tool_call", "target": "pay", "tool": "one"}
        given_ = await here.call("bob", "token", body, **{headers.MSG_ID: "b"})
        shown = {"do": "present", "token": given_.result["token"], "presentation": "p"}
        for _ in range(20):
            assert (await here.call("pay", "token", shown, **{headers.MSG_ID: "b"})).ok
        other = await here.call("alice", "token", body, **{headers.MSG_ID: "a"})
        shown = {"do": "present", "token": other.result["token"], "presentation": "p"}
        assert (await here.call("pay", "token", shown, **{headers.MSG_ID: "a"})).rule == "token:marks"
        assert (await selected("bob", "one")).ok
        assert here.service._shares._of == {f"{NAMESPACE}/alice": 10, f"{NAMESPACE}/bob": 4}
