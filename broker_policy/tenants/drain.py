"""Agents that are to be removed finish what waits for them, and get nothing new.

For as long as it takes they stay in the policy, and whoever may send to them may not any more. What is left
when the time is over becomes dead letters as without it (``retire``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from broker_policy.dead_letters.inboxes import waiting
from broker_policy.policy.store import PolicyStore, Stored
from broker_policy.tenants.controller import TenantController
from mas_nats.policy.document import Document, Permissions
from mas_nats.policy.table import Table

_LOOK_EVERY = 0.2


async def drain(
    controller: TenantController,
    store: PolicyStore,
    stored: Stored,
    wanted: Document,
    *,
    seconds: float,
    confirm: float,
    progress: Callable[[str], None],
) -> Stored:
    """Wait at most ``seconds`` until the inboxes of the agents that ``wanted`` lacks are empty.

    Returns what is stored then.

    Raises:
        NotConfirmed: a live worker did not confirm within ``confirm`` seconds.
        PolicyConflict: somebody else changed the policy meanwhile.

    """
    leaving = sorted(stored.document.agents.keys() - wanted.agents.keys())
    if not leaving or seconds <= 0:
        return stored
    meanwhile = leaving_only(stored.document, wanted, leaving)
    revision = await store.put(meanwhile, expected=stored.sequence)
    await store.wait_confirmed(revision, timeout=confirm)
    client = await controller.tenant(wanted.namespace)
    until = time.monotonic() + seconds
    said = -1
    while True:
        backlog = await waiting(client)
        left = sum(backlog.get(agent, 0) for agent in leaving)
        if not left or time.monotonic() >= until:
            return Stored(meanwhile, revision)
        if left != said:
            progress(f"{', '.join(leaving)}: {left} messages to finish")
            said = left
        await asyncio.sleep(_LOOK_EVERY)


def leaving_only(before: Document, after: Document, leaving: Iterable[str]) -> Document:
    """``after``, and beside it the agents ``leaving``: they may send what they could, and nobody to them."""
    going = tuple(leaving)
    table = Table.compile(before, 0)
    permissions = dict(after.permissions)
    for agent in going:
        said = before.permissions.get(agent, Permissions())
        abroad = [target for target in said.allowed_targets if "/" in target]
        inside = [target for target in after.agents if table.allows(agent, target)]
        permissions[agent] = said.model_copy(update={"allowed_targets": (*inside, *abroad)})
    holders = {agent for role in after.governance.roles.values() for agent in role.agents}
    for sender in {*after.agents, *going, *permissions, *holders}:
        rule = permissions.get(sender, Permissions())
        blocked = (*rule.blocked_targets, *(each for each in going if each not in rule.blocked_targets))
        permissions[sender] = rule.model_copy(update={"blocked_targets": blocked})
    agents = {**after.agents, **{agent: before.agents[agent] for agent in going}}
    return after.model_copy(update={"agents": agents, "permissions": permissions})
