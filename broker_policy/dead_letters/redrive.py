"""Puts dead letters through the pipeline again, repeatable at any point of a crash.

The decision is recorded before the message or with it, as for any message; then the message is stored in the
inbox, under a dedup id made from the dead letter; then the dead letter is removed. Whoever finds it again
after a crash asks the audit, which remembers longer than the stream, and else the stream itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client

from broker_policy.commit.judged import Judge
from broker_policy.dead_letters import letters
from broker_policy.dead_letters.letters import Letter
from broker_policy.jetstream import delete_message
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Errand, Refusal
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import namespace_of
from mas_nats.wire.subjects import AdminOp
from mas_nats.wire.verdict import Verdict, accepted

PATIENCE = 30.0
"""Seconds to wait for one message to be committed."""
_ATTEMPTS = 3

Search = Callable[[Call], Awaitable[Refusal | None]]
Redriven = Callable[[str, str, int], Awaitable[bool | None]]
"""Whether the audit knows of a message that was made of a dead letter, by sender, message id and the dead
letter's sequence; None when it cannot tell."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one dead letter."""

    sequence: int
    verdict: Verdict | None  # None: there is no such dead letter
    letter: Letter | None = None
    target: str = ""

    def row(self, done: str) -> dict[str, Any]:
        """As JSON; ``done`` says in one word what was asked for and happened."""
        if self.verdict is None:
            return {"sequence": self.sequence, "status": "gone"}
        verdict = self.verdict
        out: dict[str, Any] = {
            "sequence": self.sequence,
            "status": done if verdict.ok else "kept",
            "decision": verdict.decision,
        }
        if self.letter is not None:
            out |= {
                "message_id": self.letter.text(headers.MESSAGE_ID),
                "sender": self.letter.text(headers.SENDER),
                "target": self.target,
            }
        for name in ("step", "rule", "reason", "fix", "retry", "duplicate"):
            if value := getattr(verdict, name):
                out[name] = value
        return out


def errand(op: AdminOp, letter: Letter, by: str, *, target: str = "", attempt: int = 0) -> Call:
    """The call that does ``op`` with a dead letter, in the name of its sender."""
    call = Call(
        letter.text(headers.SENDER),
        op,
        letter.body,
        "",
        message_id=letter.text(headers.MESSAGE_ID),
        target=target or letter.agent,
        type=letter.text(headers.TYPE),
        deadline=letter.number(headers.DEADLINE),
        reply_token=letter.text(headers.REPLY_TOKEN),
        stream=letter.text(headers.STREAM) == "1",
        traceparent=letter.text(headers.TRACEPARENT),
        tracestate=letter.text(headers.TRACESTATE),
    )
    redrives = letter.number(headers.REDRIVES) + 1
    call.origin = namespace_of(call.sender)  # the header is a worker's
    call.errand = Errand(by, letter.sequence, attempt, letter.text(headers.SENT), redrives)
    return call


class Redriver:
    """Redrives dead letters of one namespace.

    ``put`` gives a call to a commit lane, ``judge`` says what the pipeline would say, once ``search`` has
    looked into what is large.
    """

    def __init__(
        self, nc: Client, *, put: Callable[[Call], bool], judge: Judge, redriven: Redriven, search: Search
    ) -> None:
        self._nc = nc
        self._put = put
        self._judge = judge
        self._search = search
        self._redriven = redriven

    async def redrive(self, sequences: Sequence[int], by: str, *, to: str = "") -> list[Done]:
        """Send the dead letters again, in this order, to their agent or ``to``.

        Raises:
            JetStreamError, nats.errors.Error: a stream did not answer; call again.

        """
        found = await self._find(sequences)
        before = await asyncio.gather(*(self._before(letter) for letter in found))
        told = await asyncio.gather(
            *(
                self._one(letter, by, to, before=known)  # each puts its call before it first waits: in order
                for letter, known in zip(found, before, strict=True)
            )
        )
        return [
            Done(sequence, verdict, letter, (to or letter.agent) if letter else "")
            for sequence, letter, verdict in zip(sequences, found, told, strict=True)
        ]

    async def judge(self, sequences: Sequence[int], by: str, *, to: str = "") -> list[Done]:
        """What ``redrive`` would do, were it done now. Nothing is recorded."""
        done = []
        for sequence, letter in zip(sequences, await self._find(sequences), strict=True):
            if letter is None:
                done.append(Done(sequence, None))
                continue
            call = errand(AdminOp.REDRIVE, letter, by, target=to)
            refusal = await self._search(call) or self._judge(call).refusal
            verdict = accepted(call.message_id) if refusal is None else refusal.verdict(call.message_id)
            done.append(Done(sequence, verdict, letter, call.target))
        return done

    async def _find(self, sequences: Sequence[int]) -> list[Letter | None]:
        return list(await asyncio.gather(*(letters.find(self._nc, sequence) for sequence in sequences)))

    async def _before(self, letter: Letter | None) -> bool | None:
        if letter is None:
            return False
        return await self._redriven(
            letter.text(headers.SENDER), letter.text(headers.MESSAGE_ID), letter.sequence
        )

    async def _one(self, letter: Letter | None, by: str, to: str, *, before: bool | None) -> Verdict | None:
        if letter is None:
            return None
        if before is None:
            return refusals.audit_silent().verdict(letter.text(headers.MESSAGE_ID))
        if before:
            verdict = accepted(letter.text(headers.MESSAGE_ID), duplicate=True)
        else:
            verdict = await self._commit(letter, by, to)
        if verdict.ok:
            await delete_message(self._nc, subjects.DLQ_STREAM, letter.sequence)
        return verdict

    async def _commit(self, letter: Letter, by: str, to: str) -> Verdict:
        """Have the pipeline decide and the lane commit; the next dedup id where the audit closed one."""
        for attempt in range(_ATTEMPTS):
            call = errand(AdminOp.REDRIVE, letter, by, target=to, attempt=attempt)
            told = call.awaited()
            if not self._put(call):
                return refusals.busy().verdict(call.message_id)
            try:
                verdict = await asyncio.wait_for(told, PATIENCE)
            except TimeoutError:
                return refusals.unavailable().verdict(call.message_id)
            if verdict.rule != refusals.GIVEN_UP:
                break
        return verdict
