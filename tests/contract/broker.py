"""What the behaviour suite needs of a broker. Whatever can be one runs the same tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mas_nats.manifest.wanted import WantedAgent
from mas_nats.policy.document import Limits
from mas_nats.wire import headers, subjects
from mas_nats.wire.state_mode import StateMode
from tests.system import System

LIMITS = Limits(ack_wait=1.5, retry_delay=0.1, retry_delay_max=1.0, max_deliver=3, in_flight=8)
"""Short waits, so that the suite takes seconds."""


@dataclass(frozen=True)
class DeadLetter:
    reason: str
    attempts: int
    error: str
    body: bytes


class Namespace(Protocol):
    """A namespace of the broker under test."""

    def options(self, agent: str) -> dict[str, Any]:
        """What ``Agent(...)`` needs to reach it."""

    async def dead_letter(self, agent: str) -> DeadLetter | None:
        """The newest dead letter of ``agent``."""

    async def waiting(self, agent: str) -> int:
        """Messages of ``agent`` that are not acknowledged yet."""


class Broker(Protocol):
    """A broker under test."""

    async def namespace(
        self,
        agents: Mapping[str, Iterable[str]],
        allow: Mapping[str, Iterable[str]],
        limits: Limits,
        state: StateMode = StateMode.MEDIATED,
    ) -> Namespace:
        """A namespace with these agents (and their capabilities) and permissions."""


@dataclass(frozen=True)
class RealNamespace:
    system: System
    name: str

    def options(self, agent: str) -> dict[str, Any]:
        return {"server_addr": self.system.broker.url, "tls": self.system.tls(agent, self.name)}

    async def dead_letter(self, agent: str) -> DeadLetter | None:
        async with self.system.tenant(self.name) as client:
            subject = f"$JS.API.DIRECT.GET.{subjects.DLQ_STREAM}.{subjects.dead_letter(agent)}"
            stored = await client.request(subject, timeout=2)
        fields = stored.headers or {}
        if headers.DEAD_REASON not in fields:
            return None
        return DeadLetter(
            fields[headers.DEAD_REASON],
            int(fields[headers.DEAD_ATTEMPTS]),
            fields[headers.DEAD_ERROR],
            stored.data,
        )

    async def waiting(self, agent: str) -> int:
        async with self.system.tenant(self.name) as client:
            info = await client.jetstream().consumer_info(subjects.INBOX_STREAM, agent)
        return int((info.num_pending or 0) + (info.num_ack_pending or 0))


@dataclass(frozen=True)
class RealBroker:
    """nats-server, Redis and two policy workers, as ``mas up`` starts them."""

    system: System

    async def namespace(
        self,
        agents: Mapping[str, Iterable[str]],
        allow: Mapping[str, Iterable[str]],
        limits: Limits,
        state: StateMode = StateMode.MEDIATED,
    ) -> RealNamespace:
        declared = {
            agent: WantedAgent(tuple(capabilities), state=state) for agent, capabilities in agents.items()
        }
        return RealNamespace(self.system, await self.system.namespace(declared, allow, limits=limits))
