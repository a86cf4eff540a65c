"""What operators may ask: ``mas.admin.<op>``, answered with a verdict like any other call.

The subjects are not exported, so nobody reaches them who is not inside the tenant account. There everybody is
trusted, and who asks is what the caller says (``by``): the audit names it, and does not vouch for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import orjson
from nats.aio.client import Client
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker_policy.admission.breaker import Breaker
from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting, Perform
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.dead_letters import letters
from broker_policy.dead_letters.redrive import Done, Redriver, errand
from broker_policy.dead_letters.removed import RemovedAgents
from broker_policy.dead_letters.undertaker import NoRoom
from broker_policy.jetstream import delete_message
from broker_policy.printable import printable
from broker_policy.state_revisions import state_revisions
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Errand
from mas_nats.policy.document import AgentId
from mas_nats.wire import subjects
from mas_nats.wire.subjects import AdminOp, Op
from mas_nats.wire.verdict import Verdict, accepted

log = logging.getLogger(__name__)

MOST_LETTERS = 64
"""Dead letters in one call: their bodies are held in memory."""
MOST_BY = 64
"""Characters of an operator's name."""
_CLEARING = 5.0
"""Seconds that one call may clear an inbox; whoever asked asks again."""
_Asked = TypeVar("_Asked", bound="_Asking")


class _Asking(BaseModel):
    """What every operator call says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    by: str = Field(min_length=1)

    @property
    def name(self) -> str:
        """Who asks, fit for a record."""
        return printable(self.by, MOST_BY)


class _Letters(_Asking):
    letters: list[int] = Field(min_length=1, max_length=MOST_LETTERS)


class _Redrive(_Letters):
    to: AgentId | None = None
    dry_run: bool = False


class _Withdraw(_Asking):
    sender: AgentId
    message_id: str = Field(pattern=r"^[!-~]{1,128}$")


class _Retire(_Asking):
    agent: AgentId
    revision: int  # of the policy that lacks the agent


class _Reset(_Asking):
    agent: AgentId


class _State(_Asking):
    agent: AgentId
    id: str = Field(pattern=r"^[!-~]{1,128}$")  # repeated with the same id, a write happens once
    state: dict[str, Any]  # as an agent asks about its own


class OperatorCalls:
    """Takes the operator calls of one namespace."""

    def __init__(
        self,
        nc: Client,
        *,
        asides: Asides,
        deciding: Deciding,
        acting: Acting,
        redriver: Redriver,
        removed: RemovedAgents,
        withdraw: Callable[[Call, str], None],
        breaker: Breaker,
        put_state: Callable[[Call], bool],
    ) -> None:
        self._nc = nc
        self._asides = asides
        self._deciding = deciding
        self._acting = acting
        self._redriver = redriver
        self._removed = removed
        self._withdraw_message = withdraw
        self._breaker = breaker
        self._put_state = put_state
        self._operations: dict[str, Callable[[Call], Awaitable[Verdict]]] = {
            AdminOp.REDRIVE: self._redrive,
            AdminOp.PURGE: self._purge,
            AdminOp.RETIRE: self._retire,
            AdminOp.WITHDRAW: self._withdraw,
            AdminOp.CIRCUITS: self._circuits,
            AdminOp.RESET: self._reset,
            AdminOp.REVISIONS: self._revisions,
        }
        self._subscription: Any = None

    async def start(self) -> None:
        """Take calls from here on."""
        self._subscription = await self._nc.subscribe(
            subjects.ADMIN, queue=subjects.WORKER_QUEUE, cb=self._take
        )

    async def stop(self) -> None:
        """Take no more calls; what was taken goes on."""
        if self._subscription is not None:
            await self._subscription.drain()

    async def _take(self, message: Any) -> None:
        op = message.subject.rpartition(".")[2]
        call = Call("", op, message.data, message.reply)
        operation = self._operations.get(op)
        if op == AdminOp.STATE:  # as large as a state may be
            self._asides.take(replace(call, body=b""), lambda _: self._state(call))
        elif operation is None:
            self._asides.tell(call, refusals.invalid("op", f"there is no operator call {op[:40]!r}"))
        else:
            self._asides.take(call, operation)

    async def _redrive(self, call: Call) -> Verdict:
        asked = _read(_Redrive, call)
        if isinstance(asked, Verdict):
            return asked
        operation = self._redriver.judge if asked.dry_run else self._redriver.redrive
        done = await operation(asked.letters, asked.name, to=asked.to or "")
        return _told(done, "would be redriven" if asked.dry_run else "redriven")

    async def _purge(self, call: Call) -> Verdict:
        asked = _read(_Letters, call)
        if isinstance(asked, Verdict):
            return asked
        done = await asyncio.gather(*(self._purge_one(sequence, asked.name) for sequence in asked.letters))
        return _told(list(done), "purged")

    async def _purge_one(self, sequence: int, by: str) -> Done:
        """Record who removes it, then remove it, on disk too."""
        letter = await letters.find(self._nc, sequence)
        if letter is None:
            return Done(sequence, None)
        about = errand(AdminOp.PURGE, letter, by)

        async def remove(_: str) -> tuple[Verdict, Outcome]:
            there = await delete_message(self._nc, subjects.DLQ_STREAM, sequence, erase=True)
            return accepted(about.message_id), Outcome.APPLIED if there else Outcome.DUPLICATE

        verdict = await self._performed(about, remove)
        return Done(sequence, verdict, letter, about.target)

    async def _withdraw(self, call: Call) -> Verdict:
        asked = _read(_Withdraw, call)
        if isinstance(asked, Verdict):
            return asked
        about = Call(asked.sender, AdminOp.WITHDRAW, b"", "", message_id=asked.message_id)
        about.target, about.type, about.errand = asked.sender, "withdraw", Errand(asked.name)
        told = about.awaited()
        self._withdraw_message(about, "operator")
        return await told

    async def _retire(self, call: Call) -> Verdict:
        asked = _read(_Retire, call)
        if isinstance(asked, Verdict):
            return asked
        follower = self._deciding.follower
        table = follower.table(self._deciding.namespace)
        if follower.stale or table is None:
            return refusals.policy_stale().verdict("")
        if table.revision < asked.revision:
            return refusals.policy_behind(asked.revision).verdict("")
        if table.agent(asked.agent) is not None:
            return refusals.still_declared(asked.agent).verdict("")
        about = Call(asked.agent, AdminOp.RETIRE, b"", "", target=asked.agent, type="retire")
        about.errand = Errand(asked.name)

        async def clear(_: str) -> tuple[Verdict, Outcome]:
            try:
                cleared = await self._removed.clear(asked.agent, patience=_CLEARING)
            except NoRoom as full:
                return refusals.not_buried(str(full)).verdict(""), Outcome.FAILED
            verdict = accepted(agent=asked.agent, buried=cleared.buried, empty=cleared.empty)
            return verdict, Outcome.APPLIED

        return await self._performed(about, clear)

    async def _circuits(self, call: Call) -> Verdict:
        asked = _read(_Asking, call)
        if isinstance(asked, Verdict):
            return asked
        return accepted(circuits=await self._breaker.listed())

    async def _revisions(self, call: Call) -> Verdict:
        asked = _read(_Asking, call)
        if isinstance(asked, Verdict):
            return asked
        return accepted(revisions=await state_revisions(self._nc))

    async def _reset(self, call: Call) -> Verdict:
        asked = _read(_Reset, call)
        if isinstance(asked, Verdict):
            return asked
        table = self._deciding.follower.table(self._deciding.namespace)
        if table is not None and table.agent(asked.agent) is None:
            return refusals.unknown_target(asked.agent, table.namespace).verdict("")
        about = Call(asked.agent, AdminOp.RESET, b"", "", target=asked.agent, type="reset")
        about.errand = Errand(asked.name)

        async def reset(_: str) -> tuple[Verdict, Outcome]:
            return accepted(agent=asked.agent, was=await self._breaker.reset(asked.agent)), Outcome.APPLIED

        return await self._performed(about, reset)

    async def _state(self, call: Call) -> Verdict:
        asked = _read(_State, call)
        if isinstance(asked, Verdict):
            return asked
        about = Call(asked.agent, Op.STATE, orjson.dumps(asked.state), "", message_id=asked.id)
        about.errand = Errand(asked.name)
        told = about.awaited()
        return await told if self._put_state(about) else refusals.busy().verdict(asked.id)

    async def _performed(self, about: Call, perform: Perform) -> Verdict:
        """What came of an act, which is recorded first."""
        told = about.awaited()
        self._acting.perform(about, self._deciding.allowed(about, "operator", Way.ACT, ""), perform)
        return await told


def _read(kind: type[_Asked], call: Call) -> _Asked | Verdict:
    try:
        return kind.model_validate_json(call.body)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)
        )
        return refusals.invalid(call.op, f"{call.op} was asked wrongly: {problems}").verdict("")


def _told(done: list[Done], word: str) -> Verdict:
    return accepted(letters=[each.row(word) for each in done])
