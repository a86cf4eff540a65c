"""Data-loss prevention between real agents: who learns what, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker_policy.audit.store import Store
from mas_nats import Agent, AgentMessage, DataBlocked, Decision, RequestFailed
from mas_nats.policy.document import Limits
from tests.system import System

CARD = "4111 1111 1111 1111"
LIMITS = Limits(retry_delay=30, retry_delay_max=30, max_deliver=5)


class Answering(Agent[Any]):
    """Answers with a card; once it corrects itself."""

    calls = 0

    @Agent.on("careless")
    async def careless(self, message: AgentMessage) -> None:
        self.calls += 1
        await message.reply("answer", {"card": CARD})

    @Agent.on("careful")
    async def careful(self, message: AgentMessage) -> None:
        with pytest.raises(DataBlocked) as blocked:
            await message.reply("answer", {"card": CARD})
        assert blocked.value.verdict.rule == "dlp:credit_card"
        await message.reply("answer", {"card": "on file"})


def options(system: System, namespace: str, agent: str) -> dict[str, Any]:
    return {"server_addr": system.broker.url, "tls": system.tls(agent, namespace)}


async def test_a_requester_learns_at_once_that_there_will_be_no_reply(system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]}, limits=LIMITS)
    desk = Answering("desk", **options(system, namespace, "desk"))
    async with desk, Agent("asker", **options(system, namespace, "asker")) as asker:
        async with asyncio.timeout(10):  # the second attempt would come after 30 s
            with pytest.raises(RequestFailed) as failed:
                await asker.request("desk", "careless", {}, timeout=60)
        assert failed.value.decision is Decision.DEAD
        assert "4111" not in str(failed.value)
        assert desk.calls == 1
        reply = await asker.request("desk", "careful", {}, timeout=10)
        assert reply.data == {"card": "on file"}


async def test_the_audit_lists_what_was_found_by_class(system: System):
    namespace = await system.namespace(["asker", "desk"], {"asker": ["desk"]})
    async with Agent("asker", **options(system, namespace, "asker")) as asker:
        with pytest.raises(DataBlocked, match="credit_card"):
            await asker.send("desk", "note", {"n": f"{CARD}, a@example.com"})
        await asker.send("desk", "note", {"n": "219-09-9999"})
        await asker.send("desk", "note", {"n": "a@example.com"})
    expected = {"dlp:credit_card": 1, "dlp:email": 2, "dlp:ssn": 1}
    async with system.redis() as redis, asyncio.timeout(10):
        layout = Store(redis, namespace).layout
        while True:
            found = {name: await redis.llen(layout.by(f"violation:{name}")) for name in expected}
            if found == expected:
                break
            await asyncio.sleep(0.1)
