"""What applying a manifest would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_policy.dead_letters.inboxes import consumers, waiting
from broker_policy.policy.store import PolicyStore
from broker_policy.tenants.changes import Change, changes
from broker_policy.tenants.controller import TenantController
from mas_nats.manifest.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of one namespace, which is at ``revision`` now (0: there is none).

    ``backlog`` says how many messages wait for each agent that would be removed, or was and is not cleared.
    """

    namespace: str
    revision: int
    changes: tuple[Change, ...]
    backlog: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether applying would do anything."""
        return bool(self.changes or self.backlog)


async def plan(controller: TenantController, store: PolicyStore, wanted: Wanted) -> Planned:
    """What ``apply`` would do with ``wanted``; nothing is changed.

    Raises: as ``TenantController.tenant``.
    """
    stored = await store.get(wanted.namespace)
    after = wanted.document().model_copy(update={"inspectors": dict.fromkeys(wanted.inspectors, "")})
    if stored is None:
        return Planned(wanted.namespace, 0, changes(None, after))
    before = stored.document
    after = after.model_copy(update={"tokens": after.tokens.with_tools_of(before.tokens)})
    client = await controller.tenant(wanted.namespace)
    messages = await waiting(client)
    gone = {*before.agents, *messages, *await consumers(client)} - wanted.agents.keys()
    return Planned(
        wanted.namespace,
        stored.sequence,
        changes(before, after),
        {agent: messages.get(agent, 0) for agent in sorted(gone)},
    )
