"""Hello, bye and discover: which instances are there, and who may see whom."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from pydantic import BaseModel, Field, JsonValue, ValidationError

from broker_policy.registry import HEARTBEAT, Registry, TooManyInstances
from broker_policy.sealing import Sealer
from mas_nats.policy import refusals
from mas_nats.policy.call import Call, Refusal
from mas_nats.policy.table import Table
from mas_nats.wire.state_mode import StateMode
from mas_nats.wire.verdict import Verdict, accepted

MAX_HELLO_BYTES = 8_192
"""Capabilities and metadata of an instance, as JSON."""


class _Hello(BaseModel):
    """The body of a hello, as any agent may have made it up."""

    capabilities: list[str] = Field(default_factory=list)
    metadata: dict[str, JsonValue] | None = None
    instance: str | None = None
    receives: bool = True


class _Bye(BaseModel):
    instance: str


class _Discover(BaseModel):
    capabilities: list[str] = Field(default_factory=list)


class Presence:
    """Takes the ``hello``, ``bye`` and ``discover`` calls of one namespace."""

    def __init__(
        self,
        registry: Registry,
        sealer: Sealer,
        table: Callable[[Call], Table | Refusal],
        *,
        room: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._sealer = sealer
        self._table = table
        self._room = room  # bytes that an answer may have

    async def hello(self, call: Call) -> Verdict:
        """Name the instance, or recognise it by the name it got before, and announce it."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        if len(call.body) > MAX_HELLO_BYTES:
            text = f"capabilities and metadata exceed {MAX_HELLO_BYTES} bytes"
            return refusals.invalid("metadata", text).verdict(call.message_id)
        try:
            hello = _Hello.model_validate_json(call.body)
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
        limits, policy = table.limits, table.agent(call.sender)
        return accepted(
            call.message_id,
            instance=instance,
            namespace=table.namespace,
            heartbeat=HEARTBEAT,
            in_flight=limits.in_flight,
            ack_wait=limits.ack_wait,
            max_deliver=limits.max_deliver,
            max_payload=limits.max_payload,
            max_state=limits.max_state,
            state=policy.state if policy else StateMode.MEDIATED,
            retry_delay=limits.retry_delay,
            retry_delay_max=limits.retry_delay_max,
        )

    async def bye(self, call: Call) -> Verdict:
        """Withdraw an instance that stops."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            instance = _Bye.model_validate_json(call.body).instance
        except ValidationError:
            return refusals.invalid("bye", "a bye needs the instance").verdict(call.message_id)
        if self._owns(table, call, instance):
            await self._registry.withdraw(call.sender, instance)
        return accepted(call.message_id)

    async def discover(self, call: Call) -> Verdict:
        """List the live agents that the caller may reach and that have all wanted capabilities."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            wanted = _Discover.model_validate_json(call.body).capabilities
        except ValidationError:
            return refusals.invalid("discover", "discover needs a list of capabilities").verdict(
                call.message_id
            )
        agents = self._registry.discover(call.sender, wanted, table)
        if (size := len(orjson.dumps(agents))) > self._room():
            text = f"the {len(agents)} agents found take {size} bytes: name the capabilities you need"
            return refusals.invalid("discover", text).verdict(call.message_id)
        return accepted(call.message_id, agents=agents)

    def _owns(self, table: Table, call: Call, instance: str) -> bool:
        return self._sealer.owns_instance(table.namespace, call.sender, instance)
