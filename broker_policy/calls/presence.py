"""Hello, bye and discover: which instances are there, and who may see whom."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import orjson
from pydantic import ValidationError

from broker_policy.calls.acting import Acting
from broker_policy.calls.asides import Asides
from broker_policy.calls.deciding import Deciding
from broker_policy.left_requests import LeftRequests
from broker_policy.registry import Registry, TooManyInstances
from broker_policy.sealing import Sealer
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.presence import MAX_HELLO_BYTES, Bye, Discover, Hello, terms
from mas_nats.policy.table import Table
from mas_nats.wire.bundle import MOST_CALLS
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Verdict, accepted


class Presence:
    """Takes the ``hello``, ``bye`` and ``discover`` calls of one namespace."""

    def __init__(
        self,
        registry: Registry,
        sealer: Sealer,
        deciding: Deciding,
        acting: Acting,
        left: LeftRequests,
    ) -> None:
        self._registry = registry
        self._left = left
        self._sealer = sealer
        self._deciding = deciding
        self._acting = acting
        self._table = deciding.table

    def takers(self, asides: Asides) -> dict[str, Callable[[Call], None]]:
        """What takes each of these calls."""
        calls = {Op.HELLO: self.hello, Op.BYE: self.bye, Op.DISCOVER: self.discover}
        return {op: partial(asides.take, operation=answer) for op, answer in calls.items()}

    async def hello(self, call: Call) -> Verdict:
        """Name the instance, or recognise it by the name it got before, and announce it."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        if len(call.body) > MAX_HELLO_BYTES:
            text = f"capabilities and metadata exceed {MAX_HELLO_BYTES} bytes"
            return refusals.invalid("metadata", text, "Announce less").verdict(call.message_id)
        if (refusal := self._deciding.inspection.inspect(call, table)) is not None:
            call.target, call.type = call.sender, "hello"
            return await self._acting.refused(call, refusal)
        try:
            hello = Hello.model_validate_json(call.body)
        except ValidationError:
            return refusals.invalid("hello", "a hello needs capabilities and metadata").verdict(
                call.message_id
            )
        instance = hello.instance
        if instance is None or not self._owns(table, call, instance):
            instance = self._sealer.new_instance(table.namespace, call.sender)
        if hello.receives:  # an instance that only sends cannot be found
            try:
                await self._registry.announce(call.sender, instance, hello.capabilities, hello.metadata or {})
            except TooManyInstances:
                return refusals.too_many_instances(call.sender).verdict(call.message_id)
            if hello.reconnected:
                self._left.forget(call.sender)
        told = terms(table, call.sender, instance, self._deciding.room())
        return accepted(call.message_id, **told, bundle=MOST_CALLS, ack_many=True)

    async def bye(self, call: Call) -> Verdict:
        """Withdraw an instance that stops."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            instance = Bye.model_validate_json(call.body).instance
        except ValidationError:
            return refusals.invalid("bye", "a bye needs the instance").verdict(call.message_id)
        if self._owns(table, call, instance):
            if self._registry.knows(call.sender, instance):  # one that receives
                self._left.forget(call.sender)
            await self._registry.withdraw(call.sender, instance)
        return accepted(call.message_id)

    async def discover(self, call: Call) -> Verdict:
        """List the live agents that the caller may reach and that have all wanted capabilities."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            wanted = Discover.model_validate_json(call.body).capabilities
        except ValidationError:
            return refusals.invalid("discover", "discover needs a list of capabilities").verdict(
                call.message_id
            )
        agents = self._registry.discover(call.sender, wanted, table)
        if (size := len(orjson.dumps(agents))) > self._deciding.room():
            text = f"the {len(agents)} agents found take {size} bytes: name the capabilities you need"
            return refusals.invalid("discover", text).verdict(call.message_id)
        return accepted(call.message_id, agents=agents)

    def _owns(self, table: Table, call: Call, instance: str) -> bool:
        return self._sealer.owns_instance(table.namespace, call.sender, instance)
