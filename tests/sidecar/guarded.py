"""A town whose sidecars want tokens, and tokens of every kind to try there."""

from __future__ import annotations

import asyncio
import base64
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from broker_policy.tenants.sealing_ring import SealingKey, SealingRing
from broker_policy.tokens.keys import TokenKeys
from mas_nats import Agent
from mas_nats.policy import token_call
from mas_nats.policy.applications import ApplicationPolicy, ApplicationType, TokenPolicy, ToolCheck
from mas_nats.policy.document import Limits
from mas_nats.policy.token_call import Exchange, Issue
from mas_nats.tokens.claims import Claims, Purpose
from mas_nats.tokens.spelling import spelled
from mas_nats.wire.headers import MSG_ID
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict
from tests.sidecar.conftest import ALLOW, Town
from tests.sidecar.test_at_most_once import HEADERS, META
from tests.system import mas_json, wanted

BOTH = (ToolCheck.TOOL_SELECTED, ToolCheck.LLM_SELECTED)
TOOLS = ("balance", "transfer_money", "secret")
PROMPT = "{.message.parts[0].text}"
NEW = {**HEADERS, "content-type": "application/json"}


def policy(checks: tuple[ToolCheck, ...] | None = BOTH, tools: tuple[str, ...] = TOOLS) -> TokenPolicy:
    """What a manifest of the town says about tokens."""
    return TokenPolicy(
        checks=checks,
        applications={
            "shop": ApplicationPolicy(type=ApplicationType.CLIENT),
            "echo": ApplicationPolicy(type=ApplicationType.AGENT),
            "bank": ApplicationPolicy(type=ApplicationType.MCP_SERVER, tools=dict.fromkeys(tools, "")),
        },
    )


async def guard(
    town: Town, tokens: TokenPolicy, allow: Mapping[str, list[str]] = ALLOW, namespace: str = ""
) -> str:
    """Have the town's policy say ``tokens``; the namespace."""
    limits = Limits(ack_wait=10.0, retry_delay=0.1)
    name = namespace or town.namespace
    what = wanted(name, ["shop", "echo", "bank"], allow, limits=limits)
    await town.system.apply(replace(what, tokens=tokens))
    return name


def rpc(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def tool_call(tool: str, **arguments: Any) -> dict[str, Any]:
    return rpc("tools/call", {"name": tool, "arguments": arguments, "_meta": META})


def carried(token: str, tool: str = "transfer_money", said: str = "", **more: Any) -> dict[str, Any]:
    """The message that a sidecar would send for a call of ``tool``; ``said``: by its header."""
    return {
        "method": "POST",
        "path": "/mcp",
        "headers": {**NEW, "mcp-method": "tools/call", "mcp-name": said or tool},
        "body": tool_call(tool, number=1),
        "begin_by": int((time.time() + 5) * 1000),
        **({"authorization": spelled(token)} if token else {}),
        **more,
    }


def new_id() -> str:
    return secrets.token_hex(16)


@dataclass
class Mint:
    """Signs as the policy service does, with its key: what nobody but a worker can."""

    keys: TokenKeys

    @classmethod
    def of(cls, town: Town) -> Mint:
        ring = town.system.material.worker.tokens
        return cls(TokenKeys(lambda: ring, now))

    @classmethod
    def foreign(cls, town: Town) -> Mint:
        """With another key under the same id."""
        ring = town.system.material.worker.tokens
        assert ring is not None
        other = SealingRing(SealingKey(ring.current.key_id, secrets.token_bytes(32)))
        return cls(TokenKeys(lambda: other, now))

    def t3(self, town: Town, message: str, **changes: Any) -> str:
        """A token with which the client may call ``transfer_money`` in ``message``."""
        at, here = int(time.time()), town.namespace
        good = Claims(
            issuer=f"mas/{here}",
            subject=f"{here}/shop",
            holder=f"{here}/shop",
            audience=f"{here}/bank",
            purpose=Purpose.TOOL_CALL,
            message=message,
            issued=at,
            expires=at + 300,
            token_id=new_id(),
            tools={f"{here}/bank": ("transfer_money",)},
        )
        return self.keys.sign(replace(good, **changes))


def now() -> int:
    return time.time_ns() // 1_000_000


def with_header(town: Town, token: str, **changes: str) -> str:
    """The same claims under another algorithm: ``none``, or HS256 keyed with the public key."""
    _, body, _ = token.split(".")
    key = Mint.of(town).keys.jwks()["keys"][0]
    head = {"alg": "EdDSA", "typ": "mas+jwt", "kid": key["kid"], **changes}
    signed = f"{_base64(orjson.dumps(head))}.{body}"
    if head["alg"] == "none":
        return f"{signed}."
    public = base64.urlsafe_b64decode(key["x"] + "=")
    return f"{signed}.{_base64(hmac.digest(public, signed.encode(), 'sha512'))}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def ask(agent: Agent[Any], body: Any, message_id: str = "") -> Verdict:
    """A ``token`` call by an agent's own code."""
    raw = body if isinstance(body, bytes) else token_call.write(body)
    return await agent._alive().calls.call(Op.TOKEN, raw, {MSG_ID: message_id or new_id()})


async def t3(agent: Agent[Any], message_id: str, tool: str = "transfer_money", token: str = "") -> Verdict:
    body = Exchange(purpose=Purpose.TOOL_CALL, target="bank", tool=tool, token=token)
    return await ask(agent, body, message_id)


async def t1(agent: Agent[Any], message_id: str, prompt: str = "pay") -> Verdict:
    return await ask(agent, Issue(target="echo", prompt=prompt), message_id)


async def audited(town: Town, wants: Any, *question: str) -> list[dict[str, Any]]:
    """What the audit says, once ``wants`` holds of it."""
    place = ("--namespace", town.namespace, "--folder", str(town.system.layout.root))
    async with asyncio.timeout(60):
        while True:
            asked = ("audit", "query", *question, *place)
            found: Any = (await asyncio.to_thread(mas_json, *asked))["decisions"]
            if wants(found):
                return list(found)
            await asyncio.sleep(0.1)
