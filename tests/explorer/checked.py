"""Calls about tokens, made as sidecars make them, and decided by real workers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from broker_policy.audit.query import Question, ask
from broker_policy.audit.store import Store
from mas_nats import Agent
from mas_nats.policy.applications import ToolCheck
from mas_nats.policy.token_call import Present
from tests.explorer.conftest import options
from tests.sidecar import guarded
from tests.sidecar.conftest import ALLOW
from tests.system import System, new_namespace, wanted


@dataclass(frozen=True)
class Checked:
    """The ids for which tokens were asked for."""

    namespace: str
    prompt: str  # sent; its token was used, and then used once more
    tool: str  # its token was given, and nothing sent
    blocked: str  # no token was given


async def checked(system: System) -> Checked:
    """A namespace with them, all of it in the audit."""
    seen = Checked(new_namespace(), *(guarded.new_id() for _ in range(3)))
    policy = guarded.policy((ToolCheck.TOOL_SELECTED,))
    what = wanted(seen.namespace, ["shop", "echo", "bank"], ALLOW)
    await system.apply(replace(what, tokens=policy))
    shop = Agent("shop", **options(system, "shop", seen.namespace), receive=False)
    echo = Agent("echo", **options(system, "echo", seen.namespace), receive=False)
    async with shop, echo:
        token = str((await guarded.t1(shop, seen.prompt)).result["token"])
        await shop.send("echo", "note", {}, id=seen.prompt)
        for _ in range(2):
            await guarded.ask(echo, Present(token=token, presentation=guarded.new_id()), seen.prompt)
        assert (await guarded.t3(shop, seen.tool)).ok
        assert not (await guarded.t3(shop, seen.blocked, "no_such_tool")).ok
    async with system.redis() as redis, asyncio.timeout(60):
        store = Store(redis, seen.namespace)
        while not await ask(store, Question(message_id=seen.blocked)):
            await asyncio.sleep(0.05)
    return seen
