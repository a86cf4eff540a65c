"""What an agent leaves behind that policy no longer knows: account, backlog, consumer; in this order.

The account goes first, so that nobody pulls or acknowledges any more. A worker moves the backlog to the
dead letters, since only workers write the audit. The consumer goes last, and only while its inbox is empty:
without it, messages would wait where any agent could acknowledge them away (ADR 5).

Every step looks again at the policy. Whoever puts the agent back meanwhile makes account and consumer once
more after its policy is stored (``apply``), so that of two that cross at least one puts right what the other
did. An interrupted one is finished by the next apply: what is left behind shows that it is not done.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors
import orjson
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from broker_policy.dead_letters.inboxes import consumers, waiting
from broker_policy.policy.store import PolicyStore, Stored
from broker_policy.tenants.controller import TenantController
from mas_nats.policy.document import Document
from mas_nats.wire import subjects
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict

log = logging.getLogger(__name__)

_ANSWER = 30.0
"""Seconds to wait for a worker, which clears an inbox for five at a time."""
_ROUNDS = 5
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of one agent's inbox. ``left`` says why something stays; "" when nothing does."""

    agent: str
    buried: int = 0
    left: str = ""


async def retire_absent(
    controller: TenantController, store: PolicyStore, stored: Stored, *, by: str, progress: Progress
) -> list[Retired]:
    """Retire every agent that has something in the namespace of ``stored`` and is not in its policy.

    ``by`` is who asks, as the audit shall name it.
    """
    document = stored.document
    client = await controller.tenant(document.namespace)
    present = {*await waiting(client), *await consumers(client)}
    return [
        await _Retirement(controller, store, client, stored, agent, by, progress).run()
        for agent in sorted(present - document.agents.keys())
    ]


class _Unfinished(Exception):
    """Something stays, for the reason the text says."""


class _Retirement:
    def __init__(
        self,
        controller: TenantController,
        store: PolicyStore,
        client: Client,
        stored: Stored,
        agent: str,
        by: str,
        progress: Progress,
    ) -> None:
        self._controller = controller
        self._store = store
        self._client = client
        self._stored = stored
        self._agent = agent
        self._by = by
        self._progress = progress
        self._buried = 0

    async def run(self) -> Retired:
        try:
            await self._run()
        except _Unfinished as reason:
            log.warning("%s is not retired: %s", self._agent, reason)
            return Retired(self._agent, self._buried, str(reason))
        return Retired(self._agent, self._buried)

    async def _run(self) -> None:
        namespace = self._stored.document.namespace
        await self._require_absent()
        await self._controller.retire_agent(namespace, self._agent)
        await self._put_right()
        for _ in range(_ROUNDS):
            while await self._backlog():
                await self._clear()
            await self._require_absent()
            with contextlib.suppress(NotFoundError):
                await self._client.jetstream().delete_consumer(subjects.INBOX_STREAM, self._agent)
            await self._put_right()
            if not await self._backlog():  # nothing came between the last look and the deletion
                return
        raise _Unfinished("messages keep coming for it: run 'mas apply' again")

    async def _backlog(self) -> int:
        return (await waiting(self._client)).get(self._agent, 0)

    async def _clear(self) -> None:
        """Have a worker bury some of the backlog."""
        body = {"by": self._by, "agent": self._agent, "revision": self._stored.sequence}
        try:
            answer = await self._client.request(
                subjects.admin(AdminOp.RETIRE), orjson.dumps(body), timeout=_ANSWER
            )
        except nats.errors.NoRespondersError:
            raise _Unfinished("no policy worker is there to move its messages") from None
        except (nats.errors.Error, OSError) as error:
            raise _Unfinished(f"a policy worker did not answer ({type(error).__name__})") from error
        verdict = Verdict.decode(answer.data)
        if not verdict.ok:
            raise _Unfinished(f"{verdict.reason}. {verdict.fix}")
        self._buried += int(verdict.result["buried"])
        self._progress(f"{self._agent}: {self._buried} messages moved to the dead letters")

    async def _document(self) -> Document | None:
        stored = await self._store.get(self._stored.document.namespace)
        return stored.document if stored else None

    async def _require_absent(self) -> None:
        document = await self._document()
        if document is None or self._agent in document.agents:
            raise _Unfinished("somebody else changed the policy meanwhile")

    async def _put_right(self) -> None:
        """Give the agent back what was just taken, if policy has it again by now."""
        document = await self._document()
        if document is not None and (policy := document.agents.get(self._agent)) is not None:
            await self._controller.look_again()
            await self._controller.ensure_agent(
                document.namespace, self._agent, document.limits, policy.state
            )
            raise _Unfinished("it was put back meanwhile")
