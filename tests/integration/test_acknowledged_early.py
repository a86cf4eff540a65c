"""What the audit says of a message that is acknowledged before its handler fails."""

from __future__ import annotations

import asyncio
from typing import Any

from mas_nats import Agent, AgentMessage
from mas_nats.policy import document as policy
from tests.system import System, mas_json


class Failing(Agent[dict[str, Any]]):
    async def on_message(self, message: AgentMessage) -> None:
        if message.message_type == "early":
            await message.acknowledge()
        raise ValueError("it went wrong")


async def outcomes(system: System, namespace: str, message_id: str) -> list[str]:
    """The outcomes of all decisions about a message, once none is open."""
    place = ("--namespace", namespace, "--folder", str(system.layout.root))
    async with asyncio.timeout(60):
        while True:
            asked = ("audit", "query", "--message-id", message_id, *place)
            found = [row["outcome"] for row in (await asyncio.to_thread(mas_json, *asked))["decisions"]]
            if found and found[0] in {"handled", "dead", "unknown"}:
                return found
            await asyncio.sleep(0.2)


async def test_the_audit_has_one_outcome_of_it(system: System):
    """It is acknowledged, so ``handled``, and no dead letter; the control, not acknowledged, is one."""
    limits = policy.Limits(max_deliver=2, retry_delay=0.05)
    namespace = await system.namespace(["a", "b"], {"a": ["b"]}, limits=limits)
    url = system.broker.url
    async with (
        Failing("b", server_addr=url, tls=system.tls("b", namespace)),
        Agent("a", server_addr=url, tls=system.tls("a", namespace), receive=False) as sender,
    ):
        await sender.send("b", "early", {}, id="early")
        await sender.send("b", "late", {}, id="late")
        assert await outcomes(system, namespace, "late") == ["dead"]
        assert await outcomes(system, namespace, "early") == ["handled"]
    place = ("--namespace", namespace, "--folder", str(system.layout.root))
    dead = await asyncio.to_thread(mas_json, "dlq", "list", *place)
    assert [each["message_id"] for each in dead["dead_letters"]] == ["late"]
