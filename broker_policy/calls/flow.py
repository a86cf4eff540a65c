"""What a reader says to the instance that streams to it: how far it has read, or that it reads no more.

Neither is stored: the producer hears it as it happens, and a reader repeats what may have been lost.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from nats.aio.client import Client

from broker_policy.audit.record import Outcome, Way
from broker_policy.calls.acting import Acting
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.wire import subjects
from mas_nats.wire.correlation import correlation
from mas_nats.wire.verdict import Verdict, accepted

_INSTANCE = re.compile(r"[a-f0-9]{20}")
_MOST_FRAMES = 2**31


class FlowCalls:
    """Takes the ``flow`` and ``cancel`` calls of one namespace.

    Both go only where the caller may send, and speak only of what the caller itself asked for: the
    producer knows a stream by its requester, which is the caller.
    """

    def __init__(self, nc: Client, deciding: Deciding, acting: Acting, asides: Asides) -> None:
        self._nc = nc
        self._deciding = deciding
        self._acting = acting
        self._asides = asides

    def take_flow(self, call: Call) -> None:
        """Pass on how many frames were read. Nothing is decided by it, so nothing is recorded."""
        self._asides.take(call, self._flow)

    def take_cancel(self, call: Call) -> None:
        """Record that the reader has left, and pass it on."""
        instance = self._instance(call)
        if isinstance(instance, Refusal):
            self._acting.refuse(call, instance)
            return

        async def tell(_: str) -> tuple[Verdict, Outcome]:
            # All of them: a redelivery may have brought the request to another one than the reader knows.
            await self._tell(call, subjects.EVERY_INSTANCE, {"requester": call.sender, "cancelled": True})
            return accepted(call.message_id), Outcome.APPLIED

        self._acting.perform(call, self._deciding.allowed(call, "own_request", Way.ACT, ""), tell)

    async def _flow(self, call: Call) -> Verdict:
        instance = self._instance(call)
        if isinstance(instance, Refusal):
            return instance.verdict(call.message_id)
        read = orjson.loads(call.body).get("read")
        if type(read) is not int or not 0 <= read < _MOST_FRAMES:
            return refusals.invalid("flow", "read is a number of frames").verdict(call.message_id)
        await self._tell(call, instance, {"requester": call.sender, "read": read})
        return accepted(call.message_id)

    def _instance(self, call: Call) -> str | Refusal:
        """Where it goes: one instance of the target, or all while none has answered yet."""
        table = self._deciding.table(call)
        if isinstance(table, Refusal):
            return table
        if (refusal := self._deciding.refusal(call, table)) is not None:
            return refusal
        to = orjson.loads(call.body).get("to") or subjects.EVERY_INSTANCE
        if to != subjects.EVERY_INSTANCE and not (isinstance(to, str) and _INSTANCE.fullmatch(to)):
            return refusals.invalid("to", "an instance has a name of 20 hexadecimal digits")
        return str(to)

    async def _tell(self, call: Call, instance: str, what: dict[str, Any]) -> None:
        subject = subjects.flow(call.target, instance, correlation(call.message_id))
        await self._nc.publish(subject, orjson.dumps(what))
