"""Rotating the key that signs tokens: what it signed before is believed, unless it was stolen."""

from __future__ import annotations

import secrets
from dataclasses import replace

from broker_policy.keys.rotate import rotate
from broker_policy.keys.site import Site
from mas_nats import Agent
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy
from mas_nats.policy.token_call import Exchange, Keys, Present
from mas_nats.tokens.claims import Purpose
from mas_nats.wire.headers import MSG_ID
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict
from tests.system import System, new_namespace, wanted

TOKENS = TokenPolicy(
    checks=(),
    applications={
        "shop": ApplicationPolicy(type=ApplicationType.CLIENT),
        "bank": ApplicationPolicy(type=ApplicationType.MCP_SERVER),
    },
)


async def ask(agent: Agent, body: Exchange | Keys | Present, message: str) -> Verdict:
    raw = body.model_dump_json().encode()
    return await agent._alive().calls.call(Op.TOKEN, raw, {MSG_ID: message})


async def given(shop: Agent, message: str) -> str:
    body = Exchange(purpose=Purpose.TOOL_CALL, target="bank", tool="pay")
    return str((await ask(shop, body, message)).result["token"])


async def kids(agent: Agent) -> list[str]:
    answer = await ask(agent, Keys(), secrets.token_hex(16))
    return [key["kid"] for key in answer.result["jwks"]["keys"]]


async def test_old_tokens_are_believed_unless_the_key_was_stolen(system: System):
    namespace = new_namespace()
    what = wanted(namespace, ["shop", "bank"], {"shop": ["bank"]})
    await system.apply(replace(what, tokens=TOKENS))
    site = Site(system.layout, say=lambda _: None, patience=60)
    url = system.broker.url
    async with (
        Agent("shop", server_addr=url, tls=system.tls("shop", namespace), receive=False) as shop,
        Agent("bank", server_addr=url, tls=system.tls("bank", namespace), receive=False) as bank,
    ):
        before = await kids(shop)
        one, two = secrets.token_hex(16), secrets.token_hex(16)
        first, second = await given(shop, one), await given(shop, two)
        await rotate(site, "token-signing")
        after = await kids(shop)
        assert after[0] not in before
        assert set(before) <= set(after)
        assert (await ask(bank, Present(token=first, presentation="p"), one)).ok
        await rotate(site, "token-signing", now=True)
        assert len(await kids(shop)) == 1
        stolen = await ask(bank, Present(token=second, presentation="p"), two)
        assert (stolen.ok, stolen.rule) == (False, "token:unknown_key")
        fresh = secrets.token_hex(16)
        presented = Present(token=await given(shop, fresh), presentation="p")
        assert (await ask(bank, presented, fresh)).ok  # the control
