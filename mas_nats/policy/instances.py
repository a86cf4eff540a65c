"""Which instances of which agents live, and who may see whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mas_nats.policy.table import Table

HEARTBEAT = 10.0
"""Seconds between two hellos of an instance."""
LOST_AFTER = 30.0
"""Seconds of silence after which an instance is no longer discovered."""
MOST_INSTANCES = 256
"""Live instances of one agent: as many as its account may have connections."""
MOST_BYTES = 256 << 10
"""Bytes that the instances of one agent may announce together."""
MOST_METADATA = 16 << 10
"""Bytes of metadata shown of one agent, besides the manifest's."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What an instance announced in its last hello, of ``size`` bytes, and when (on the clock given)."""

    capabilities: frozenset[str]
    metadata: dict[str, Any]
    size: int
    seen: float


class Instances:
    """The live instances of one namespace. ``clock`` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of: dict[str, dict[str, Instance]] = {}

    def knows(self, agent: str, instance: str) -> bool:
        """Whether this instance was announced and is not withdrawn."""
        return instance in self._of.get(agent, {})

    def alive(self, agent: str) -> dict[str, Instance]:
        """The live instances of ``agent`` by name."""
        oldest = self._clock() - LOST_AFTER
        return {name: each for name, each in self._of.get(agent, {}).items() if each.seen >= oldest}

    def has_room(self, agent: str, instance: str, size: int) -> bool:
        """Whether ``agent`` may have this instance, which announces ``size`` bytes, beside its others."""
        others = [each for name, each in self.alive(agent).items() if name != instance]
        return len(others) < MOST_INSTANCES and sum(each.size for each in others) + size <= MOST_BYTES

    def announce(
        self, agent: str, instance: str, capabilities: Sequence[str], metadata: dict[str, Any], size: int
    ) -> None:
        """An instance said hello."""
        alive = self.alive(agent)  # and so the lost ones are forgotten
        alive[instance] = Instance(frozenset(capabilities), metadata, size, self._clock())
        self._of[agent] = alive

    def withdraw(self, agent: str, instance: str) -> None:
        """An instance said bye."""
        alive = self.alive(agent)
        alive.pop(instance, None)
        if alive:
            self._of[agent] = alive
        else:
            self._of.pop(agent, None)

    def discover(self, caller: str, capabilities: Iterable[str], table: Table) -> list[dict[str, Any]]:
        """Agents alive that ``caller`` may reach and that have all ``capabilities``.

        A capability counts when the manifest declares it and an instance announced it; metadata is the
        manifest's, completed by what instances announced.
        """
        wanted = set(capabilities)
        found = []
        for agent in sorted(self._of):
            declared = table.agent(agent)
            if declared is None or agent == caller or not table.allows(caller, agent):
                continue
            alive = self.alive(agent).values()
            # By what is declared: what instances make up may be a thousand times as much.
            effective = {
                each for each in declared.capabilities if any(each in one.capabilities for one in alive)
            }
            if alive and wanted <= effective:
                metadata: dict[str, Any] = {}
                room = MOST_METADATA
                for instance in alive:
                    room -= instance.size
                    if room < 0:
                        break
                    metadata |= instance.metadata
                found.append(
                    {
                        "agent_id": agent,
                        "capabilities": sorted(effective),
                        "metadata": metadata | declared.metadata,
                        "instances": len(alive),
                    }
                )
        return found
