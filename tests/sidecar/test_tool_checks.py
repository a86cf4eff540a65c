"""A tool is called where the user's input and the language model say so; the audit has why not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from mcp import Client
from mcp.shared.exceptions import MCPError

from mas_nats import Agent
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy, ToolCheck
from mas_nats.policy.token_call import Exchange, Issue, Present, Selected
from mas_nats.sidecar.refusal import REFUSED
from mas_nats.sidecar.tokens import TokenAuthority
from mas_nats.tokens import jwt
from mas_nats.tokens.claims import Claims, Purpose, prompt_digest
from mas_nats.tokens.spelling import spelled
from mas_nats.wire.correlation import new_message_id
from tests.sidecar.answers import SERVED, outcome
from tests.sidecar.applications import serving
from tests.sidecar.conftest import ALLOW, Town
from tests.sidecar.guarded import (
    BOTH,
    NEW,
    PROMPT,
    TOOLS,
    Mint,
    ask,
    audited,
    carried,
    guard,
    new_id,
    policy,
    rpc,
    t1,
    t3,
    tool_call,
)
from tests.sidecar.test_official_a2a import request
from tests.system import new_namespace, wanted

EVERYONE = ("bank", "echo", "shop")


class Recording:
    """An ASGI application before another, that keeps the ``Authorization`` of every request."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await self.app(scope, receive, send)


def applications(town: Town) -> dict[str, Any]:
    """The settings' applications, with the place of the prompt."""
    said: dict[str, Any] = town.document()["applications"]
    said["echo"]["prompt"] = PROMPT
    return said


@pytest.fixture
async def guarded(empty_town: Town) -> AsyncIterator[Town]:
    """All sidecars run and want tokens; both checks are named."""
    await guard(empty_town, policy(BOTH))
    async with contextlib.AsyncExitStack() as stack:
        await empty_town.start(stack, *EVERYONE, tokens=True, applications=applications(empty_town))
        yield empty_town


async def prompted(town: Town, text: str) -> httpx.Response:
    """The user's prompt, from the client to the agent."""
    message = {"role": "user", "messageId": new_id(), "parts": [{"kind": "text", "text": text}]}
    async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
        return await http.post("http://echo.test/", json=rpc("message/send", {"message": message}))


async def call_tool(town: Town, tool: str, app: str = "echo", **headers: str) -> httpx.Response:
    """A tool's call, as the application makes it through its sidecar."""
    said = {**NEW, "mcp-method": "tools/call", "mcp-name": tool, **headers}
    async with httpx.AsyncClient(proxy=town.proxy(app), timeout=60) as http:
        return await http.post("http://bank.test/mcp", json=tool_call(tool, number=1), headers=said)


def authority(town: Town) -> TokenAuthority:
    tokens = town.sidecars["echo"].tokens
    assert tokens is not None
    return tokens


def cause(town: Town) -> str:
    """The request that the agent works on."""
    (found,) = town.sidecars["echo"]._inbound._in_flight._traces  # type: ignore[union-attr]
    return found


def rule(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["data"]["rule"])


def read(town: Town, authorization: str) -> Claims:
    """What a token says that an application got."""
    scheme, _, token = authorization.partition(" ")
    assert scheme == "Bearer"
    return jwt.read(token, jwt.keys_of(Mint.of(town).keys.jwks()), now=time.time())


async def test_from_the_prompt_to_the_tool(empty_town: Town):
    """What the applications get: tokens of one chain, and nothing of what another application put there."""
    town = empty_town
    await guard(town, policy(BOTH))
    bank = Recording(town.bank.app())
    causes: list[str] = []

    async def think(text: str) -> str:
        causes.append(cause(town))
        await authority(town).selected(cause(town), ["transfer_money", "no such tool!", "made_up"])
        answer = await call_tool(town, "transfer_money", authorization="Bearer of-the-application")
        return "called" if outcome(answer) == SERVED else answer.text

    town.echo.think = think
    async with contextlib.AsyncExitStack() as stack:
        town.ports["bank"] = await stack.enter_async_context(serving(bank))
        await town.start(stack, *EVERYONE, tokens=True, applications=applications(town))
        answer = await prompted(town, "pay")
        assert answer.json()["result"]["parts"][0]["text"] == "called"
        held = authority(town)._held[causes[0]].token
    assert town.bank.transfers == [1]
    input_, call = read(town, f"Bearer {held}"), read(town, bank.seen[-1])
    here = town.namespace
    assert input_.purpose is Purpose.USER_INPUT
    assert (input_.subject, input_.holder, input_.audience) == (
        f"{here}/shop",
        f"{here}/shop",
        f"{here}/echo",
    )
    assert input_.prompt == prompt_digest("pay")
    assert input_.tools == {f"{here}/bank": tuple(sorted(TOOLS))}
    assert call.purpose is Purpose.TOOL_CALL
    assert (call.subject, call.holder, call.audience) == (f"{here}/shop", f"{here}/echo", f"{here}/bank")
    assert call.actors == (f"{here}/echo",)
    assert (call.cause, call.tools) == (causes[0], {f"{here}/bank": ("transfer_money",)})
    assert call.expires <= input_.expires
    assert input_.expires - input_.issued == 300
    found = await audited(
        town,
        lambda all_: any(each["type"].startswith("selected:") for each in all_),
        "--message-id",
        causes[0],
    )
    assert {each["type"] for each in found} >= {"issue:user_input", "present:user_input"}
    assert held not in str(found)


async def test_what_the_model_did_not_select(guarded: Town):
    """Not known, then another tool, then this one; and what a request was given is not another's."""
    town = guarded
    said: list[tuple[int, str]] = []

    async def think(text: str) -> str:
        if text == "other request":
            said.append(_told(await call_tool(town, "transfer_money")))
            return ""
        said.append(_told(await call_tool(town, "transfer_money")))
        for tool in ("balance", "transfer_money"):
            await authority(town).selected(cause(town), [tool])
            said.append(_told(await call_tool(town, "transfer_money")))
        return ""

    town.echo.think = think
    await prompted(town, "pay")
    check = "DETERMINISTIC_LLM_SELECTED_TOOLS"
    assert said == [(403, f"policy.ABSTAIN:{check}"), (403, f"policy.BLOCK:{check}"), (200, "")]
    assert town.bank.transfers == [1]
    await prompted(town, "other request")
    assert said[-1] == (403, f"policy.ABSTAIN:{check}")
    assert town.bank.transfers == [1]
    want = {f"ABSTAIN:{check}", f"BLOCK:{check}", f"ALLOW:DETERMINISTIC_TOOL_SELECTED,{check}"}
    found = await audited(
        town, lambda all_: want <= {each["rule"] for each in all_}, "--sender", "echo", "--target", "bank"
    )
    decisions = {each["rule"]: each["decision"] for each in found if each["rule"] in want}
    assert set(decisions.values()) == {"AUTHZ_DENIED", "ALLOWED"}
    assert decisions[f"BLOCK:{check}"] == "AUTHZ_DENIED"


def _told(answer: httpx.Response) -> tuple[int, str]:
    """The status that the answer's error names, and its rule."""
    code, status = outcome(answer)
    if (code, status) == SERVED:
        return 200, ""
    assert code == REFUSED
    assert answer.json()["error"]["data"]["ran"] == "no"
    return status, rule(answer)


async def test_what_goes_on_after_the_answer_is_not_done_in_the_name_of_the_next_request(guarded: Town):
    """The agent works on for the first client's request while it works on a second one, and only on that."""
    town = guarded
    told: list[tuple[int, str]] = []

    async def think(text: str) -> str:
        if text == "second":
            late = town.echo.traces["first"]
            await authority(town).selected(cause(town), ["transfer_money"])
            told.append(_told(await call_tool(town, "transfer_money", traceparent=late)))
            own = town.echo.traces["second"]
            told.append(_told(await call_tool(town, "transfer_money", traceparent=own)))
        return ""

    town.echo.think = think
    await prompted(town, "first")
    late = town.echo.traces["first"]
    alone = _told(await call_tool(town, "transfer_money", traceparent=late))
    assert alone == (403, "policy.ABSTAIN:DETERMINISTIC_TOOL_SELECTED")
    await prompted(town, "second")
    assert told == [(403, "correlation"), (200, "")]
    assert town.bank.transfers == [1]


async def test_a_tool_that_the_users_token_does_not_allow(guarded: Town):
    """Registered after the request came, or withdrawn since: either way it is not called."""
    town = guarded
    only = (ToolCheck.TOOL_SELECTED,)
    said: list[tuple[int, str]] = []
    await guard(town, policy(only, tools=("balance",)))

    async def think(text: str) -> str:
        said.append(_told(await call_tool(town, "transfer_money")))
        await guard(town, policy(only))
        said.append(_told(await call_tool(town, "transfer_money")))
        await guard(town, policy(only, tools=("transfer_money",)))
        said.append(_told(await call_tool(town, "balance")))
        return ""

    town.echo.think = think
    await prompted(town, "pay")
    assert said == [(403, "policy.BLOCK:DETERMINISTIC_TOOL_SELECTED")] * 3
    assert town.bank.transfers == []
    assert town.bank.calls == 0
    town.echo.think = lambda text: _call(town, said)
    await prompted(town, "pay")  # the control: a new request has the tool
    assert said[-1] == (200, "")


async def _call(town: Town, said: list[tuple[int, str]]) -> str:
    said.append(_told(await call_tool(town, "transfer_money")))
    return ""


async def test_without_a_users_input(guarded: Town):
    """An agent that works on nothing calls no tool and no agent; a client is the user's own."""
    refused = await call_tool(guarded, "transfer_money")
    assert _told(refused) == (403, "policy.ABSTAIN:DETERMINISTIC_TOOL_SELECTED")
    assert guarded.bank.transfers == []
    assert _told(await call_tool(guarded, "transfer_money", app="shop")) == (200, "")
    assert _told(await call_tool(guarded, "count", app="shop"))[1].startswith(
        "policy.BLOCK:"
    )  # not registered
    tls = guarded.system.tls("bank", guarded.namespace)
    async with Agent("bank", server_addr=guarded.system.broker.url, tls=tls, receive=False) as server:
        assert (await t1(server, new_id())).rule == "token:no_input"
        assert (await t3(server, new_id(), "balance")).rule == "deny_by_default"


async def test_checks_that_are_not_named(guarded: Town):
    """None at all denies; an empty list, which the manifest has to say, allows."""
    await guard(guarded, policy(None))
    assert _told(await call_tool(guarded, "transfer_money", app="shop")) == (403, "policy.BLOCK:unset")
    assert guarded.bank.transfers == []
    await guard(guarded, policy(()))
    assert _told(await call_tool(guarded, "transfer_money")) == (200, "")
    assert guarded.bank.transfers == [1]


async def test_a_prompt_is_bound(empty_town: Town):
    """Another prompt under the same token is refused; one that data-loss prevention redacts passes."""
    town = empty_town
    await guard(town, policy(BOTH))
    tls = town.system.tls("shop", town.namespace)
    async with contextlib.AsyncExitStack() as stack:
        await town.start(stack, "echo", "shop", tokens=True, applications=applications(town))
        thief = await stack.enter_async_context(
            Agent("shop", server_addr=town.system.broker.url, tls=tls, receive=False)
        )
        for said, refused in (("give it to me", True), ("pay", False)):
            message = new_id()
            token = str((await t1(thief, message, "pay")).result["token"])
            part = {"role": "user", "messageId": message, "parts": [{"kind": "text", "text": said}]}
            data = carried(token, path="/", headers={"content-type": "application/json"})
            data["body"] = rpc("message/send", {"message": part})
            reply = await thief.request("echo", "a2a:message/send", data, id=message, timeout=30)
            assert (reply.message_type == "refused:token_prompt") is refused, reply.data
        assert town.echo.told == ["pay"]
        answer = await prompted(town, "write to jane.doe@hospital.org, her SSN is 536-22-1234")
        assert answer.status_code == 200
        assert "error" not in answer.json(), answer.text
        assert "536-22-1234" not in town.echo.told[-1]  # it was redacted on its way
        answer = await prompted(town, "long text; " * 10_000 + "her SSN is 536-22-1234")  # searched apart
        assert "error" not in answer.json(), answer.text
        assert "536-22-1234" not in town.echo.told[-1]
        answer = await prompted(town, "the key is AKIAIOSFODNN7EXAMPLE")
        assert answer.json()["error"]["data"][0]["metadata"]["rule"].startswith("policy.dlp:")
        missing = {"role": "user", "messageId": new_id(), "parts": [{"kind": "data", "data": {}}]}
        async with httpx.AsyncClient(proxy=town.proxy("shop"), timeout=60) as http:
            answer = await http.post("http://echo.test/", json=rpc("message/send", {"message": missing}))
        assert answer.json()["error"]["data"][0]["metadata"]["rule"] == "prompt"


async def test_the_right_to_say_what_was_selected(guarded: Town):
    """A T2 is its holder's, for one answer; no other token says what was selected, and it calls no tool."""
    town = guarded
    bank: list[str] = []

    async def think(text: str) -> str:
        here = cause(town)
        async with _other_code(town, "echo") as echo, _other_code(town, "shop") as shop:
            held = authority(town)._held[here].token
            wanted = Exchange(purpose=Purpose.LLM_ACCESS, token=held)
            assert (await ask(shop, wanted)).rule == "token:audience"
            token = str((await ask(echo, wanted)).result["token"])
            report = Selected(token=token, tools=("transfer_money",))
            assert (await ask(shop, report)).rule == "token:holder"
            assert (await ask(echo, Selected(token=held, tools=()))).rule == "token:purpose"
            assert (await ask(echo, Present(token=token, presentation="p"))).rule == "token:purpose"
            assert (await t3(echo, new_id(), token=token)).rule == "token:purpose"
            message = new_id()
            call = carried(token, cause=here)
            reply = await echo.request("bank", "mcp:tools/call", call, id=message, timeout=30)
            bank.append(reply.message_type)
            assert (await t3(echo, new_id(), token=held)).rule.startswith("ABSTAIN:")
            assert (await ask(echo, report)).ok
            assert (await ask(echo, report)).rule == "token:used"
            given = await t3(echo, message := new_id(), token=held)
            call = carried(str(given.result["token"]), cause=here)
            reply = await echo.request("bank", "mcp:tools/call", call, id=message, timeout=30)
            bank.append(reply.message_type)
        return "done"

    town.echo.think = think
    answer = await prompted(town, "pay")
    assert "done" in answer.text, answer.text
    assert bank[0] == "refused:token_purpose"
    assert not bank[1].startswith("refused")
    assert town.bank.transfers == [1]


@contextlib.asynccontextmanager
async def _other_code(town: Town, app: str) -> AsyncIterator[Agent]:
    """An agent's own code, with the certificate of ``app``."""
    tls = town.system.tls(app, town.namespace)
    async with Agent(app, server_addr=town.system.broker.url, tls=tls, receive=False) as agent:
        yield agent


async def test_calls_that_are_none(guarded: Town):
    async with _other_code(guarded, "shop") as shop:
        for body in (b"{}", b'{"do":"mint"}', b'{"do":"keys","more":1}', b"[]", b"\xff"):
            assert (await ask(shop, body)).rule == "token"
        assert (await ask(shop, Present(token=spelled("a"), presentation="p"))).rule == "token:malformed"
        assert (await ask(shop, b'{"do":"keys"}', new_message_id())).ok


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_official_client_and_server(guarded: Town, monkeypatch: pytest.MonkeyPatch, mode: str):
    """They know of no tokens: what is registered is called, what is not is an error of the protocol."""
    monkeypatch.setenv("HTTP_PROXY", guarded.proxy("shop"))
    monkeypatch.setenv("http_proxy", guarded.proxy("shop"))
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with Client("http://bank.test/mcp", mode=mode) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert "transfer_money" in tools
        assert "count" not in tools
        result = await client.call_tool("transfer_money", {"number": 7})
        assert result.content[0].text == "done"  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="BLOCK:DETERMINISTIC_TOOL_SELECTED"):
            await client.call_tool("count", {"to": 1})
    assert guarded.bank.transfers == [7]


async def test_an_agent_that_calls_another(guarded: Town):
    """In the name of the same user, as long as it works on that user's request: with a token of its own."""
    town = guarded
    await guard(town, policy(BOTH), {**ALLOW, "echo": ["bank", "echo"]})
    told: list[Claims] = []

    async def think(text: str) -> str:
        if text == "subtask":
            here = cause_of(town, "subtask")
            told.append(read(town, f"Bearer {authority(town)._held[here].token}"))
            return ""
        message = {"role": "user", "messageId": new_id(), "parts": [{"kind": "text", "text": "subtask"}]}
        async with httpx.AsyncClient(proxy=town.proxy("echo"), timeout=60) as http:
            return (await http.post("http://echo.test/", json=rpc("message/send", {"message": message}))).text

    town.echo.think = think
    answer = await prompted(town, "task")
    assert "error" not in answer.json(), answer.text
    (claims,) = told
    here = town.namespace
    assert (claims.subject, claims.holder, claims.audience) == (
        f"{here}/shop",
        f"{here}/echo",
        f"{here}/echo",
    )
    assert claims.actors == (f"{here}/echo",)
    assert claims.prompt == prompt_digest("subtask")
    assert claims.cause
    async with _other_code(town, "echo") as echo:
        alone = await ask(echo, Issue(target="echo", prompt="subtask"))
        assert alone.rule == "token:no_input"
        plain = Mint.of(town).t3(town, new_id())
        assert (await ask(echo, Issue(target="echo", given=plain))).decision == "DLP_BLOCKED"
        assert (await ask(echo, Issue(target="echo", given=spelled(plain)))).rule == "token:purpose"


async def test_a_users_input_is_not_renewed_by_passing_it_on(guarded: Town):
    """What is given because of it ends with it; a T2 alone may end later, for a slow answer."""
    town = guarded
    await guard(town, policy(BOTH), {**ALLOW, "echo": ["bank", "echo"]})
    here, at, echo = town.namespace, int(time.time()), town.sidecars["echo"]
    end = at + 30
    token = Mint.of(town).t3(
        town,
        new_id(),
        purpose=Purpose.USER_INPUT,
        audience=f"{here}/echo",
        issued=at - 270,
        expires=end,
    )
    for _ in range(3):
        given = await ask(echo, Issue(target="echo", prompt="pay", given=spelled(token)))
        token = str(given.result["token"])
        assert read(town, f"Bearer {token}").expires == end
    slow = await ask(echo, Exchange(purpose=Purpose.LLM_ACCESS, token=token))
    access = str(slow.result["token"])
    assert read(town, f"Bearer {access}").expires >= at + 300
    assert (await ask(echo, Selected(token=access, tools=("transfer_money",)))).ok
    assert read(town, f"Bearer {(await t3(echo, new_id(), token=token)).result['token']}").expires == end
    for purpose in (Purpose.LLM_ACCESS, Purpose.TOOL_CALL):  # it is exchanged for nothing
        body = Exchange(purpose=purpose, token=access, target="bank", tool="transfer_money")
        assert (await ask(echo, body)).rule == "token:purpose"


def cause_of(town: Town, prompt: str) -> str:
    """The newest request that the agent works on; ``prompt`` is what it was told."""
    assert town.echo.told[-1] == prompt
    return list(town.sidecars["echo"]._inbound._in_flight._traces)[-1]  # type: ignore[union-attr]


async def test_a_namespace_that_checks_nothing_vouches_for_no_user_in_another(guarded: Town):
    """Neither its agent nor one to whom that passes something on says what a user said; its client does."""
    town, lax = guarded, new_namespace()
    here, system = town.namespace, town.system
    names = ("bot", "next", "app")
    types = {each: ApplicationPolicy(type=ApplicationType.AGENT) for each in ("bot", "next")}
    types["app"] = ApplicationPolicy(type=ApplicationType.CLIENT)

    async def say(checks: tuple[ToolCheck, ...]) -> None:
        near = wanted(
            here, ["shop", "echo", "bank"], {**ALLOW, **{f"{lax}/{name}": ["echo"] for name in names}}
        )
        await system.apply(replace(near, tokens=policy(checks)))
        allow = {"bot": ["next", f"{here}/echo"], "next": [f"{here}/echo"], "app": ["next", f"{here}/echo"]}
        await system.apply(
            replace(wanted(lax, names, allow), tokens=TokenPolicy(checks=(), applications=types))
        )

    await say(BOTH)
    async with contextlib.AsyncExitStack() as stack:
        bot, then, app = [
            await stack.enter_async_context(
                Agent(name, server_addr=system.broker.url, tls=system.tls(name, lax), receive=False)
            )
            for name in names
        ]
        there = Issue(target=f"{here}/echo", prompt="pay")
        assert (await ask(bot, there)).rule == "token:no_input"
        inside = [await ask(each, Issue(target="next", prompt="pay")) for each in (bot, app)]
        passed = [
            spelled(str(each.result["token"])) for each in inside
        ]  # in its own affairs nothing is checked
        assert (await ask(then, there.model_copy(update={"given": passed[0]}))).rule == "token:no_input"
        assert (await ask(then, there.model_copy(update={"given": passed[1]}))).ok
        assert (await ask(app, there)).ok
        await say(())
        assert (await ask(bot, there)).ok
        assert (await ask(then, there.model_copy(update={"given": passed[0]}))).ok


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
@pytest.mark.parametrize("version", ["1.0", "0.3"])
async def test_the_official_client_and_agent(guarded: Town, version: str, binding: str, streaming: bool):
    """Their prompts are bound in both versions, both bindings, streamed or not."""
    async with httpx.AsyncClient(proxy=guarded.proxy("shop"), timeout=60) as http:
        card = await A2ACardResolver(http, "http://echo.test").get_agent_card()
        only = [
            each
            for each in card.supported_interfaces
            if each.protocol_version == version and each.protocol_binding == binding
        ]
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(only)
        config = ClientConfig(httpx_client=http, streaming=streaming, supported_protocol_bindings=[binding])
        client = ClientFactory(config).create(card)
        parts = [each async for each in client.send_message(request("pay"))]
    assert "you said pay" in str(parts)
    (held,) = authority(guarded)._held.values()
    assert read(guarded, f"Bearer {held.token}").prompt == prompt_digest("pay")
