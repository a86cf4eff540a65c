"""Two namespaces whose agents may talk where both say so, and what their audits say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker_policy.tenants.apply import set_permissions
from mas_nats import Agent, AgentMessage, PermissionDenied
from mas_nats.policy.document import Limits, Permissions
from mas_nats.policy.governance import Governance
from tests.load import audit_of
from tests.system import System, mas, new_namespace


class Desk(Agent[Any]):
    """Answers requests with what it was told, and keeps what it got."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.got: list[AgentMessage] = []
        self.arrived = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self.got.append(message)
        self.arrived.set()
        if message.reply_token:
            await message.reply("answer", {"heard": message.data})


@dataclass
class Two:
    """Two namespaces: ``router`` in the first may reach ``desk`` in the second, if both say so."""

    system: System
    sales: str
    billing: str
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, namespace: str, agent: str, cls: type[Agent[Any]] = Desk, **options: Any) -> Any:
        tls = self.system.tls(agent, namespace)
        made = cls(agent, server_addr=self.system.broker.url, tls=tls, **options)
        await self.stack.enter_async_context(made)
        return made

    async def pair(self) -> tuple[Desk, Desk]:
        """The router and the desk."""
        return await self.start(self.sales, "router"), await self.start(self.billing, "desk")

    @property
    def desk(self) -> str:
        return f"{self.billing}/desk"

    @property
    def router(self) -> str:
        return f"{self.sales}/router"

    async def permit(
        self, namespace: str, sender: str, allowed: Sequence[str] = (), blocked: Sequence[str] = ()
    ) -> None:
        """Replace one sender's permissions in the policy of ``namespace``."""
        rule = Permissions(allowed_targets=tuple(allowed), blocked_targets=tuple(blocked))
        async with self.system.control() as (_, store):
            await set_permissions(store, namespace, sender, rule)

    async def decisions(self, namespace: str, message_id: str) -> list[dict[str, Any]]:
        """What the audit of ``namespace`` says of a message, once all is settled."""
        audit = await audit_of(self.system, namespace, {message_id})
        return list(audit["decisions"][message_id])

    async def unheard_of(self, agent: Agent[Any], namespace: str, message_id: str) -> bool:
        """Whether the audit of ``namespace``, where ``agent`` is, says nothing of a message."""
        with pytest.raises(PermissionDenied) as later:
            await agent.send("nobody", "marker", {})
        audit = await audit_of(self.system, namespace, {later.value.message_id})
        return message_id not in audit["decisions"]

    def verify(self) -> None:
        """Both chains verify, each by itself."""
        for namespace in (self.sales, self.billing):
            folder = str(self.system.layout.root)
            done = mas("audit", "verify", "--folder", folder, "--namespace", namespace, check=False)
            assert done.returncode == 0, done.stdout


@asynccontextmanager
async def two(
    system: System,
    *,
    out: Mapping[str, Sequence[str]] | None = None,
    accepts: Mapping[str, Sequence[str]] | None = None,
    block_out: Mapping[str, Sequence[str]] | None = None,
    block_in: Mapping[str, Sequence[str]] | None = None,
    governance_out: Governance | None = None,
    governance_in: Governance | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Two]:
    """The two namespaces; in the rules ``S/`` and ``B/`` stand for their names."""
    sales, billing = new_namespace(), new_namespace()

    def named(rules: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
        def full(name: str) -> str:
            return name.replace("S/", f"{sales}/").replace("B/", f"{billing}/")

        return {
            full(sender): [full(target) for target in targets] for sender, targets in (rules or {}).items()
        }

    out = {"router": ["B/desk"]} if out is None else out
    accepts = {"S/router": ["desk"]} if accepts is None else accepts
    await system.namespace(
        ["router", "desk"], named(out), block=named(block_out), governance=governance_out, name=sales
    )
    await system.namespace(
        ["desk", "router"],
        named(accepts),
        block=named(block_in),
        governance=governance_in,
        limits=limits,
        name=billing,
    )
    made = Two(system, sales, billing)
    async with made.stack:
        yield made
