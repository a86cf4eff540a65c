"""Hello, bye and discover: which instances are there, and who may see whom."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from broker_policy import refusals
from broker_policy.pipeline.call import Call, Refusal
from broker_policy.policy.table import Table
from broker_policy.registry import HEARTBEAT, Registry
from broker_policy.sealing import Sealer
from mas_nats.wire.verdict import Verdict, accepted

MAX_HELLO_BYTES = 8_192
"""Capabilities and metadata of an instance, as JSON."""


class Presence:
    """Takes the ``hello``, ``bye`` and ``discover`` calls of one namespace."""

    def __init__(self, registry: Registry, sealer: Sealer, table: Callable[[Call], Table | Refusal]) -> None:
        self._registry = registry
        self._sealer = sealer
        self._table = table

    async def hello(self, call: Call) -> Verdict:
        """Name the instance, or recognise it by the name it got before, and announce it."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        if len(call.body) > MAX_HELLO_BYTES:
            text = f"capabilities and metadata exceed {MAX_HELLO_BYTES} bytes"
            return refusals.invalid("metadata", text).verdict(call.message_id)
        try:
            raw = orjson.loads(call.body)
            capabilities = [str(each) for each in raw.get("capabilities", [])]
            metadata, instance = dict(raw.get("metadata") or {}), raw.get("instance")
        except (TypeError, ValueError, AttributeError):
            return refusals.invalid("hello", "a hello needs capabilities and metadata").verdict(
                call.message_id
            )
        if not isinstance(instance, str) or not self._owns(table, call, instance):
            instance = self._sealer.new_instance(table.namespace, call.sender)
        if raw.get("receives") is not False:  # an instance that only sends cannot be found
            await self._registry.announce(call.sender, instance, capabilities, metadata)
        limits = table.limits
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
            retry_delay=limits.retry_delay,
            retry_delay_max=limits.retry_delay_max,
        )

    async def bye(self, call: Call) -> Verdict:
        """Withdraw an instance that stops."""
        table = self._table(call)
        if isinstance(table, Refusal):
            return table.verdict(call.message_id)
        try:
            instance = str(orjson.loads(call.body)["instance"])
        except (KeyError, TypeError, ValueError):
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
            wanted = [str(each) for each in orjson.loads(call.body).get("capabilities", [])]
        except (TypeError, ValueError, AttributeError):
            return refusals.invalid("discover", "discover needs a list of capabilities").verdict(
                call.message_id
            )
        return accepted(call.message_id, agents=self._registry.discover(call.sender, wanted, table))

    def _owns(self, table: Table, call: Call, instance: str) -> bool:
        return self._sealer.owns_instance(table.namespace, call.sender, instance)
