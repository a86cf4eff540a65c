"""Tokens that are not those of the call they come with: refused by a named rule, nothing reaches anybody."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from broker_policy.tokens.marks import Marks
from broker_policy.tokens.shares import Shares
from mas_nats import Agent, DataBlocked
from mas_nats.policy.token_call import Exchange, Present
from mas_nats.sidecar.refusal import HEADER_MISMATCH, REFUSED
from mas_nats.tokens.claims import Purpose, digest
from mas_nats.tokens.spelling import spelled
from tests.sidecar.conftest import Town
from tests.sidecar.guarded import (
    BOTH,
    Mint,
    ask,
    audited,
    carried,
    guard,
    new_id,
    policy,
    t3,
    with_header,
)


@pytest.fixture
async def guarded(empty_town: Town) -> AsyncIterator[Town]:
    """The bank's sidecar wants tokens."""
    await guard(empty_town, policy(BOTH))
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, "bank", tokens=True)
        yield empty_town


@pytest.fixture
async def thief(guarded: Town) -> AsyncIterator[Agent]:
    """An agent's own code, with the client's certificate."""
    tls = guarded.system.tls("shop", guarded.namespace)
    async with Agent("shop", server_addr=guarded.system.broker.url, tls=tls, receive=False) as agent:
        yield agent


Make = Callable[[Town, str], str]
"""A token for the message of an id."""


def minted(**changes: object) -> Make:
    return lambda town, message: Mint.of(town).t3(town, message, **changes)


def other(name: str) -> Callable[[Town], str]:
    return lambda town: f"{town.namespace}/{name}"


FORGED: list[tuple[str, Make]] = [
    ("signature", lambda town, message: Mint.foreign(town).t3(town, message)),
    ("malformed", lambda town, message: with_header(town, Mint.of(town).t3(town, message), alg="none")),
    ("algorithm", lambda town, message: with_header(town, Mint.of(town).t3(town, message), alg="HS512")),
    ("algorithm", lambda town, message: with_header(town, Mint.of(town).t3(town, message), typ="JWT")),
    ("header", lambda town, message: with_header(town, Mint.of(town).t3(town, message), jku="http://a")),
    ("unknown_key", lambda town, message: with_header(town, Mint.of(town).t3(town, message), kid="00000000")),
    ("signature", lambda town, message: with_header(town, Mint.of(town).t3(town, message))),
    ("expired", lambda town, message: _aged(town, message, 600)),
    ("not_yet", lambda town, message: _aged(town, message, -600)),
    ("not_yet", lambda town, message: Mint.of(town).t3(town, message, expires=int(time.time()) + 3600)),
    ("audience", lambda town, message: Mint.of(town).t3(town, message, audience=f"{town.namespace}/echo")),
    ("audience", lambda town, message: Mint.of(town).t3(town, message, audience="elsewhere/bank")),
    ("holder", lambda town, message: Mint.of(town).t3(town, message, holder=f"{town.namespace}/echo")),
    ("purpose", minted(purpose=Purpose.LLM_ACCESS)),
    ("purpose", minted(purpose=Purpose.USER_INPUT)),
    ("tool", lambda town, message: Mint.of(town).t3(town, message, tools=_tools(town, "balance"))),
    ("tool", lambda town, message: Mint.of(town).t3(town, message, tools={})),
    (
        "tool",
        lambda town, message: Mint.of(town).t3(town, message, tools=_tools(town, "a", "transfer_money")),
    ),
    ("replayed", lambda town, message: Mint.of(town).t3(town, new_id())),
    ("cause", minted(cause="another-request")),
]


def _aged(town: Town, message: str, seconds: int) -> str:
    at = int(time.time()) - seconds
    return Mint.of(town).t3(town, message, issued=at, expires=at + 300)


def _tools(town: Town, *names: str) -> dict[str, tuple[str, ...]]:
    return {f"{town.namespace}/bank": names}


async def test_forged_tokens(guarded: Town, thief: Agent):
    """Each is refused by its rule, in the audit, and without its text; with the good one the call passes."""
    for rule, make in FORGED:
        message = new_id()
        token = make(guarded, message)
        reply = await thief.request("bank", "mcp:tools/call", carried(token), id=message, timeout=30)
        assert reply.message_type == f"refused:token_{rule}", rule
        assert reply.data["refused"]["rule"] == f"token_{rule}"
        assert reply.data["refused"]["code"] == REFUSED
        assert token.rpartition(".")[2] not in str(reply.data) or token.endswith(".")
    assert guarded.bank.transfers == []
    message = new_id()
    good = carried(Mint.of(guarded).t3(guarded, message))
    reply = await thief.request("bank", "mcp:tools/call", good, id=message, timeout=30)
    assert "refused" not in reply.data
    assert guarded.bank.transfers == [1]
    refused = {f"refused:token_{rule}" for rule, _ in FORGED}
    await audited(guarded, lambda all_: refused <= {each["type"] for each in all_}, "--sender", "bank")


async def test_no_token_and_no_spelling(guarded: Town, thief: Agent):
    message = new_id()
    token = Mint.of(guarded).t3(guarded, message)
    for rule, said in (
        ("missing", carried("")),
        ("malformed", carried("", authorization="Bearer forged")),
        ("malformed", carried("", authorization=spelled(token)[1:])),
        ("malformed", carried("", authorization=spelled("é"))),
    ):
        reply = await thief.request("bank", "mcp:tools/call", said, timeout=30)
        assert reply.message_type == f"refused:token_{rule}"
    with pytest.raises(DataBlocked):  # data-loss prevention finds a token that is spelled as one
        await thief.request("bank", "mcp:tools/call", carried("", authorization=f"Bearer {token}"))
    listing = carried(token)
    listing["headers"] |= {"mcp-method": "tools/list"}
    del listing["headers"]["mcp-name"]
    listing["body"] = {**listing["body"], "method": "tools/list"}
    listing["body"]["params"] = {"_meta": listing["body"]["params"]["_meta"]}
    reply = await thief.request("bank", "mcp:tools/list", listing, timeout=30)
    assert reply.message_type == "refused:token_unexpected"
    assert guarded.bank.transfers == []


async def test_a_header_that_disagrees_with_the_body(guarded: Town, thief: Agent):
    """The token is of the tool in the body; what the header says does not help, nor the other way round."""
    message = new_id()
    token = Mint.of(guarded).t3(guarded, message)
    for tool, said in (("transfer_money", "balance"), ("balance", "transfer_money")):
        data = carried(token, tool, said=said)
        reply = await thief.request("bank", "mcp:tools/call", data, timeout=30)
        assert reply.data["refused"]["rule"] == "header_mismatch"
        assert reply.data["refused"]["code"] == HEADER_MISMATCH
    assert guarded.bank.transfers == []
    assert guarded.bank.calls == 0


async def test_a_token_is_used_once(guarded: Town, thief: Agent):
    """By whatever worker and sidecar: presented again it is refused, also where it is the same message."""
    tls = guarded.system.tls("bank", guarded.namespace)
    message = new_id()
    token = str((await t3(thief, message)).result["token"])
    reply = await thief.request("bank", "mcp:tools/call", carried(token), id=message, timeout=30)
    assert "refused" not in reply.data
    assert guarded.bank.transfers == [1]
    async with Agent("bank", server_addr=guarded.system.broker.url, tls=tls, receive=False) as bank:
        again = await ask(bank, Present(token=token, presentation=new_id()), message)
        assert (again.ok, again.rule) == (False, "token:used")
        fresh = str((await t3(thief, other_id := new_id())).result["token"])
        presentation = Present(token=fresh, presentation=new_id())
        wrong = await ask(bank, presentation, new_id())
        assert wrong.rule == "token:message"
        assert (await ask(thief, presentation, other_id)).rule == "token:audience"
        assert (await ask(bank, presentation, other_id)).ok  # the control
        assert (await ask(bank, presentation, other_id)).ok  # the same call, repeated by the SDK
    found = await audited(
        guarded, lambda all_: any(each["rule"] == "token:used" for each in all_), "--message-id", message
    )
    kinds = [(each["decision"], each["type"], each["rule"]) for each in found]
    allowed = "ALLOW:DETERMINISTIC_TOOL_SELECTED,DETERMINISTIC_LLM_SELECTED_TOOLS"
    assert ("ALLOWED", "exchange:tool_call:transfer_money", allowed) in kinds
    assert ("ALLOWED", "present:tool_call:transfer_money", "tool_call") in kinds
    assert ("AUTHZ_DENIED", "present:tool_call:transfer_money", "token:used") in kinds
    digests = {each["commitment"] for each in found if each["type"].startswith("exchange:")}
    assert digests == {digest(token)}
    assert token not in str(found)


async def test_a_token_of_another_namespace(guarded: Town, thief: Agent):
    """Given by the same workers, under the same names, for another system."""
    far = await guarded.system.namespace(["a"], {})
    await guard(guarded, policy(BOTH), namespace=far)
    tls = guarded.system.tls("shop", far)
    message = new_id()
    async with Agent("shop", server_addr=guarded.system.broker.url, tls=tls, receive=False) as there:
        token = str((await t3(there, message)).result["token"])
    reply = await thief.request("bank", "mcp:tools/call", carried(token), id=message, timeout=30)
    assert reply.message_type == "refused:token_audience"
    assert guarded.bank.transfers == []
    message = new_id()
    own = str((await t3(thief, message)).result["token"])
    reply = await thief.request("bank", "mcp:tools/call", carried(own), id=message, timeout=30)
    assert "refused" not in reply.data


async def test_a_mark_is_made_by_one_worker(guarded: Town):
    """Workers share nothing but the bucket: of many that are shown a token at once, one takes it."""
    system, here = guarded.system, guarded.namespace
    async with system.tenant(here) as one, system.tenant(here) as two:
        marks = [Marks(each, Shares(100, 310.0)) for each in (one, two)]
        for _ in range(5):
            token_id = new_id()
            taken = await asyncio.gather(*(marks[n % 2].use(token_id, f"p{n}", "a/b") for n in range(8)))
            assert sorted(taken) == [*[False] * 7, True]
            again = await asyncio.gather(*(marks[n % 2].use(token_id, f"p{n}", "a/b") for n in range(8)))
            assert again == taken


async def test_between_namespaces_both_are_asked(empty_town: Town):
    """A caller's namespace that checks nothing does not open the tools of another."""
    town = empty_town
    far = await town.system.namespace(["a"], {})
    near = {"shop": ["bank"], f"{far}/shop": ["bank"]}
    await guard(town, policy(()), {"shop": [f"{town.namespace}/bank"]}, namespace=far)
    tls = town.system.tls("shop", far)
    told = []
    async with Agent("shop", server_addr=town.system.broker.url, tls=tls, receive=False) as shop:
        for checks in (None, BOTH):
            await guard(town, policy(checks), near)
            for tool in ("transfer_money", "count"):  # the second is not registered
                body = Exchange(purpose=Purpose.TOOL_CALL, target=f"{town.namespace}/bank", tool=tool)
                answer = await ask(shop, body)
                told.append("" if answer.ok else answer.rule)
    assert told == ["BLOCK:unset", "BLOCK:unset", "", "BLOCK:DETERMINISTIC_TOOL_SELECTED"]
