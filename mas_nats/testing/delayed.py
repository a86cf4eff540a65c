"""Messages of the in-memory broker that wait until they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from mas_nats.policy import refusals
from mas_nats.policy.call import Call
from mas_nats.policy.shape import unfit_time, well_formed
from mas_nats.testing.deciding import Deciding, seen
from mas_nats.testing.seen import DeadLetter
from mas_nats.wire.subjects import RELEASE
from mas_nats.wire.verdict import Verdict, accepted

_TRY_AGAIN = 1.0
"""Seconds until a message that was refused for now is tried again."""


class Delayed:
    """Takes the ``delay`` and ``withdraw`` calls; ``send`` judges a message and puts it into its inbox."""

    def __init__(self, deciding: Deciding, send: Callable[[Call], Verdict]) -> None:
        self._deciding = deciding
        self._send = send
        self._held: dict[tuple[str, str], tuple[Call, asyncio.TimerHandle]] = {}
        self._cancelled: set[tuple[str, str]] = set()
        self._released: dict[tuple[str, str], tuple[str, str, bytes]] = {}

    def delay(self, call: Call) -> Verdict:
        """Hold a message until it is due."""
        deciding, limits = self._deciding, self._deciding.table.limits
        refusal = deciding.judge(call) or unfit_time(call, limits)
        if refusal is not None:
            return deciding.refuse(call, refusal)
        name = (call.sender, call.message_id)
        held = self._held.get(name)
        if (known := _content(held[0]) if held else self._released.get(name)) is not None:
            if known != _content(call):
                return deciding.refuse(call, refusals.id_reused())
            deciding.allow(call, "duplicate")
            return accepted(call.message_id, duplicate=True)
        if sum(sender == call.sender for sender, _ in self._held) >= limits.delayed_messages:
            return deciding.refuse(call, refusals.delayed_full(call.sender, limits.delayed_messages))
        deciding.allow(call, "permissions")
        self._hold(call, call.due / 1000 - deciding.now())
        return accepted(call.message_id)

    def withdraw(self, call: Call) -> Verdict:
        """Take a message of the caller's own back."""
        call.target, call.type = call.sender, "withdraw"
        if (refusal := well_formed(call)) is not None:
            return self._deciding.refuse(call, refusal)
        self._deciding.allow(call, "own_message")
        name = (call.sender, call.message_id)
        if (held := self._held.pop(name, None)) is not None:
            held[1].cancel()
            self._cancelled.add(name)
        return accepted(call.message_id, cancelled=name in self._cancelled)

    def close(self) -> None:
        """End every timer."""
        for _, timer in self._held.values():
            timer.cancel()

    def _hold(self, call: Call, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._release, call)
        self._held[call.sender, call.message_id] = (call, timer)

    def _release(self, call: Call) -> None:
        """It is due: judge it again, as a message that is sent now."""
        del self._held[call.sender, call.message_id]
        self._cancelled.discard((call.sender, call.message_id))
        due = replace(call, op=RELEASE)
        if self._deciding.table.agent(call.sender) is None:
            verdict = self._deciding.refuse(due, refusals.unknown_sender(call.sender))
        else:
            verdict = self._send(due)
        if verdict.retry:
            self._hold(call, _TRY_AGAIN)
            return
        self._released[call.sender, call.message_id] = _content(call)
        if not verdict.ok:
            error = f"refused when due: {verdict.rule}: {verdict.reason}"
            letter = DeadLetter(seen(due), verdict.decision, 0, error[:300], call.body)
            self._deciding.ledger.dead[call.target].append(letter)


def _content(call: Call) -> tuple[str, str, bytes]:
    return call.target, call.type, call.body
