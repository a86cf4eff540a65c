"""What the behaviour suite needs of a broker. Whatever can be one runs the same tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import Limits, Permissions
from mas_nats.testing import MemoryBroker
from mas_nats.wire import headers, subjects
from mas_nats.wire.identity import DEFAULT_NAMESPACE
from mas_nats.wire.state_mode import StateMode
from tests.processes import kill
from tests.system import System, new_namespace, wanted

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

    async def renew(self, agent: str) -> None:
        """Make running instances of ``agent`` connect anew, as a new certificate does."""

    async def forget(self, agent: str) -> None:
        """Take ``agent`` out of the policy."""

    async def permit(self, sender: str, targets: Iterable[str]) -> None:
        """Let ``sender`` reach these and nobody else."""

    def close(self) -> None:
        """Nobody needs it any more."""


class Broker(Protocol):
    """A broker under test."""

    async def namespace(
        self,
        agents: Mapping[str, Iterable[str]],
        allow: Mapping[str, Iterable[str]],
        limits: Limits,
        state: StateMode = StateMode.MEDIATED,
        name: str = "",
    ) -> Namespace:
        """A namespace with these agents (and their capabilities) and permissions."""

    def crash(self) -> None:
        """Kill the server; whatever watches over it starts it again."""


@dataclass(frozen=True)
class RealNamespace:
    system: System
    wanted: Wanted

    def options(self, agent: str) -> dict[str, Any]:
        return {"server_addr": self.system.broker.url, "tls": self.system.tls(agent, self.wanted.namespace)}

    async def dead_letter(self, agent: str) -> DeadLetter | None:
        async with self.system.tenant(self.wanted.namespace) as client:
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
        async with self.system.tenant(self.wanted.namespace) as client:
            info = await client.jetstream().consumer_info(subjects.INBOX_STREAM, agent)
        return int((info.num_pending or 0) + (info.num_ack_pending or 0))

    async def renew(self, agent: str) -> None:
        self.options(agent)  # issues a new certificate into the same files

    async def forget(self, agent: str) -> None:
        agents = {name: each for name, each in self.wanted.agents.items() if name != agent}
        await self.system.apply(replace(self.wanted, agents=agents))

    async def permit(self, sender: str, targets: Iterable[str]) -> None:
        rule = Permissions(allowed_targets=tuple(targets))
        await self.system.apply(replace(self.wanted, permissions={**self.wanted.permissions, sender: rule}))

    def close(self) -> None:
        """Namespaces stay until the system goes down."""


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
        name: str = "",
    ) -> RealNamespace:
        declared = {
            agent: WantedAgent(tuple(capabilities), state=state) for agent, capabilities in agents.items()
        }
        content = wanted(name or new_namespace(), declared, allow, limits=limits)
        await self.system.apply(content)
        return RealNamespace(self.system, content)

    def crash(self) -> None:
        kill(self.system.broker.pid, "nats-server")


@dataclass(frozen=True)
class MemoryNamespace:
    broker: MemoryBroker

    def options(self, agent: str) -> dict[str, Any]:
        return self.broker.options(agent)

    async def dead_letter(self, agent: str) -> DeadLetter | None:
        if not (found := self.broker.dead_letters(agent)):
            return None
        newest = found[-1]
        return DeadLetter(newest.reason, newest.attempts, newest.error, newest.body)

    async def waiting(self, agent: str) -> int:
        return self.broker.waiting(agent)

    async def renew(self, agent: str) -> None:
        await self.broker.renew(agent)

    async def forget(self, agent: str) -> None:
        self.broker.forget(agent)

    async def permit(self, sender: str, targets: Iterable[str]) -> None:
        self.broker.set_permissions(sender, allowed=targets)

    def close(self) -> None:
        self.broker.stop()


@dataclass(frozen=True)
class InMemory:
    """The broker of ``mas_nats.testing``."""

    made: list[MemoryBroker] = field(default_factory=list)

    async def namespace(
        self,
        agents: Mapping[str, Iterable[str]],
        allow: Mapping[str, Iterable[str]],
        limits: Limits,
        state: StateMode = StateMode.MEDIATED,
        name: str = "",
    ) -> MemoryNamespace:
        declared = {
            agent: WantedAgent(tuple(capabilities), state=state) for agent, capabilities in agents.items()
        }
        beside = self.made[-1] if name and self.made else None
        namespace = name or DEFAULT_NAMESPACE
        made = MemoryBroker(declared, allow=allow, limits=limits, namespace=namespace, beside=beside)
        self.made.append(made.start())
        return MemoryNamespace(self.made[-1])

    def crash(self) -> None:
        for broker in self.made:
            broker.restart()
