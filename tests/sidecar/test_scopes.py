"""Scopes: a token says what everybody on its way is registered for, and a call without one does not pass."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mas_nats import Agent
from mas_nats.policy.applications import TokenPolicy, ToolCheck
from mas_nats.policy.token_call import Exchange, Present
from mas_nats.tokens.claims import Purpose
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.applications import serving
from tests.sidecar.conftest import Town
from tests.sidecar.guarded import Mint, ask, audited, carried, guard, new_id, policy, t3
from tests.sidecar.test_token_endpoint import GRANT, JWT
from tests.sidecar.test_tool_checks import (
    EVERYONE,
    Recording,
    applications,
    authority,
    call_tool,
    cause,
    prompted,
    read,
)

ONLY = (ToolCheck.TOOL_SELECTED,)


def scoped(**scopes: str) -> TokenPolicy:
    """The town's policy, with the scopes of its applications."""
    plain = policy(ONLY)
    return plain.model_copy(
        update={
            "applications": {
                name: each.model_copy(update={"scopes": tuple(scopes.get(name, "").split())})
                for name, each in plain.applications.items()
            }
        }
    )


@contextlib.asynccontextmanager
async def running(town: Town, tokens: TokenPolicy) -> AsyncIterator[Recording]:
    """The town under ``tokens``, its sidecars with the same manifest; what the bank gets is kept."""
    await guard(town, tokens)
    bank = Recording(town.bank.app())
    said = applications(town)
    for name, each in tokens.applications.items():
        said[name]["scopes"] = list(each.scopes)
    async with contextlib.AsyncExitStack() as stack:
        town.ports["bank"] = await stack.enter_async_context(serving(bank))
        said["bank"]["base_url"] = town.base("bank")
        await town.start(stack, *EVERYONE, tokens=True, applications=said)
        yield bank


@pytest.mark.parametrize(
    ("shop", "passes"),
    [
        ("look pay", True),  # the control
        ("look", False),  # the agent has more than the user's client, and may not use it for that
        ("", False),
    ],
)
async def test_an_agent_uses_no_scope_that_its_user_does_not_have(empty_town: Town, shop: str, passes: bool):
    town = empty_town
    said: list[str] = []
    tokens = scoped(shop=shop, echo="look pay" if shop else "", bank="pay")
    async with running(town, tokens) as bank:

        async def think(text: str) -> str:
            answer = await call_tool(town, "transfer_money")
            said.append("called" if outcome(answer) == SERVED else answer.text)
            return ""

        town.echo.think = think
        await prompted(town, "pay")
        if passes:
            assert said == ["called"]
            assert read(town, bank.seen[-1]).scopes == ("pay",)
            held = next(iter(authority(town)._held.values())).token
            assert read(town, f"Bearer {held}").scopes == ("look", "pay")
            assert town.bank.transfers == [1]
            return
        assert "policy.token:scope" in said[0]
        assert town.bank.transfers == []
        found = await audited(
            town, lambda all_: any(each["rule"] == "token:scope" for each in all_), "--sender", "echo"
        )
        (refused,) = [each for each in found if each["rule"] == "token:scope"]
        assert (refused["decision"], refused["type"], refused["target"]) == (
            "AUTHZ_DENIED",
            "exchange:tool_call:transfer_money",
            "bank",
        )


async def test_an_agent_with_scopes_is_called_by_who_has_one(empty_town: Town):
    async with running(empty_town, scoped(shop="look", echo="pay")):
        refused = await prompted(empty_town, "pay")
        assert "policy.token:scope" in refused.text
        assert empty_town.echo.told == []
        await guard(empty_town, scoped(shop="look pay", echo="pay"))
        assert "error" not in (await prompted(empty_town, "pay")).json()
        assert empty_town.echo.told == ["pay"]


async def test_where_it_comes_a_token_without_the_scope_is_refused(empty_town: Town):
    """By the sidecar, whoever signed it; and by policy, where the sidecar has an older manifest."""
    town = empty_town
    tls, address = town.system.tls("shop", town.namespace), town.system.broker.url
    async with (
        running(town, scoped(shop="pay", bank="pay")),
        Agent("shop", server_addr=address, tls=tls, receive=False) as thief,
    ):
        for scopes, refused in (((), True), (("look",), True), (("pay",), False)):
            message = new_id()
            token = Mint.of(town).t3(town, message, scopes=scopes)
            reply = await thief.request("bank", "mcp:tools/call", carried(token), id=message, timeout=30)
            assert (reply.message_type == "refused:token_scope") is refused, reply.data
        assert town.bank.transfers == [1]
    bank_tls = town.system.tls("bank", town.namespace)
    async with Agent("bank", server_addr=address, tls=bank_tls, receive=False) as bank:
        for scopes, rule in (((), "token:scope"), (("look",), "token:scope"), (("pay",), "tool_call")):
            message = new_id()
            token = Mint.of(town).t3(town, message, scopes=scopes)
            verdict = await ask(bank, Present(token=token, presentation=new_id()), message)
            assert verdict.ok is (rule == "tool_call"), verdict
            assert verdict.ok or verdict.rule == rule
        await guard(town, scoped(bank="look"))  # withdrawn since it was given
        token = Mint.of(town).t3(town, message := new_id(), scopes=("pay",))
        assert (await ask(bank, Present(token=token, presentation="p"), message)).rule == "token:scope"


async def test_over_http_scopes_are_asked_for(empty_town: Town):
    """In the form of RFC 8693: what is given is said, and what is not is ``invalid_scope``."""
    town = empty_town
    seen: dict[str, Any] = {}
    wanted = {
        "all": "transfer_money",
        "some": "transfer_money pay",
        "not registered": "transfer_money admin",
        "unknown": "transfer_money nothing",
        "no tool": "pay admin look",
        "two spaces": "transfer_money  pay",
    }
    tokens = scoped(shop="look pay", echo="look pay", bank="look pay admin")
    async with running(town, tokens):

        async def think(text: str) -> str:
            form = {
                "grant_type": GRANT,
                "subject_token": authority(town)._held[cause(town)].token,
                "subject_token_type": JWT,
                "audience": "bank.test",
            }
            async with httpx.AsyncClient(timeout=60) as http:
                for name, scope in wanted.items():
                    url = f"http://{town.sidecars['echo'].address}/token"
                    seen[name] = (await http.post(url, data={**form, "scope": scope})).json()
            return ""

        town.echo.think = think
        await prompted(town, "pay")
    assert seen["all"]["scope"] == "transfer_money look pay"
    assert seen["some"]["scope"] == "transfer_money pay"
    assert read(town, f"Bearer {seen['some']['access_token']}").scopes == ("pay",)
    for name in ("not registered", "unknown", "no tool", "two spaces"):
        assert seen[name]["error"] == "invalid_scope", (name, seen[name])
        assert "access_token" not in seen[name]
    assert "token:scope" in seen["not registered"]["error_description"]


async def test_another_namespace_gives_itself_no_scope(empty_town: Town):
    """What its own manifest says of its applications counts here only as far as this one agrees."""
    town = empty_town
    far = await town.system.namespace(["a"], {})
    near = {"shop": ["bank"], f"{far}/shop": ["bank"]}
    await guard(town, scoped(shop="pay"), {"shop": [f"{town.namespace}/bank"]}, namespace=far)
    wanted = Exchange(purpose=Purpose.TOOL_CALL, target=f"{town.namespace}/bank", tool="transfer_money")
    here = scoped(shop="pay", bank="pay")
    tls = town.system.tls("shop", far)
    async with Agent("shop", server_addr=town.system.broker.url, tls=tls, receive=False) as shop:
        await guard(town, here, near)
        assert (await ask(shop, wanted)).rule == "token:scope"
        bank = here.applications["bank"].model_copy(update={"sources": {f"{far}/shop": ("pay",)}})
        lets = here.model_copy(update={"applications": {**here.applications, "bank": bank}})
        await guard(town, lets, near)
        given = await ask(shop, wanted)
        assert given.ok, given
        assert read(town, f"Bearer {given.result['token']}").scopes == ("pay",)


async def test_without_scopes_nothing_changes(empty_town: Town):
    """A caller may have some: where the called has none, a token says none."""
    town = empty_town
    await guard(town, scoped(shop="pay"))
    tls = town.system.tls("shop", town.namespace)
    async with Agent("shop", server_addr=town.system.broker.url, tls=tls, receive=False) as shop:
        given = await t3(shop, new_id())
        assert given.ok
        assert read(town, f"Bearer {given.result['token']}").scopes == ()
