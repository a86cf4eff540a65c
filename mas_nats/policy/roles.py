"""Permission patterns of roles, and what they come to for the agents that exist.

A pattern is ``<action>:<target>``, where ``*`` stands for any characters: ``send:billing``,
``send:worker-*``, ``send:*``. The one action is ``send``, which covers requests and delayed messages as well;
``*`` alone is everything in the namespace. ``send:other/desk-*`` is about agents of the namespace ``other``;
no pattern is about several namespaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mas_nats.wire.identity import ID_PATTERN, namespace_of

ACTION = "send"
ANYTHING = "*"
_TARGET = re.compile(rf"({ID_PATTERN.pattern}/)?[a-z0-9_*-]{{1,63}}")


def require_pattern(pattern: str) -> str:
    """``pattern`` itself.

    Raises:
        ValueError: it is none, or one that could never grant anything.

    """
    action, colon, target = pattern.partition(":")
    if pattern == ANYTHING:
        return pattern
    if not colon or not _TARGET.fullmatch(target):
        raise ValueError(
            f"{pattern!r} is no permission pattern: write {ACTION}:<target>, where the target is an agent id "
            "in which * stands for any characters, or <namespace>/ and such an id"
        )
    if action not in (ACTION, ANYTHING):
        raise ValueError(f"{pattern!r}: there is no action {action!r}, only {ACTION!r} and '*'")
    return pattern


def target_of(pattern: str) -> str:
    """The part of a pattern that is about the target."""
    return pattern.partition(":")[2] or ANYTHING


def matching(patterns: Iterable[str], agents: frozenset[str]) -> frozenset[str]:
    """Those of ``agents`` that one of ``patterns`` names."""
    targets = {target_of(pattern) for pattern in patterns}
    if ANYTHING in targets:
        return agents
    targets = {target for target in targets if not namespace_of(target)}
    exact = {target for target in targets if ANYTHING not in target}
    wild = [target.split(ANYTHING) for target in targets - exact]
    return (agents & exact) | {agent for agent in agents if any(_fits(agent, pieces) for pieces in wild)}


def _fits(agent: str, pieces: list[str]) -> bool:
    """Whether ``agent`` has ``pieces`` in this order, the first at its start and the last at its end.

    The leftmost place for each is as good as any, so that no pattern takes long.
    """
    first, *middle, last = pieces
    end = len(agent) - len(last)
    if end < len(first) or not agent.startswith(first) or not agent.endswith(last):
        return False
    at = len(first)
    for piece in middle:
        found = agent.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


@dataclass(frozen=True, slots=True)
class Granted:
    """What roles grant: targets by sender, and for explanations the targets of each role.

    ``abroad``: by role, what its patterns say of agents of other namespaces, which are not known here.
    """

    by_sender: Mapping[str, frozenset[str]]
    by_role: Mapping[str, frozenset[str]]
    roles_of: Mapping[str, tuple[str, ...]]
    abroad: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def none(cls) -> Granted:
        """No roles."""
        return cls({}, {}, {})

    @classmethod
    def expand(
        cls,
        roles: Mapping[str, tuple[Iterable[str], Iterable[str]]],
        agents: Iterable[str],
    ) -> Granted:
        """Expand ``roles`` (patterns and holders, by name) against the ``agents`` that exist.

        Senders that hold the same roles share one set: ten thousand holders of ``send:*`` take no more room
        than one.
        """
        if not roles:
            return cls.none()
        existing = frozenset(agents)
        by_role = {name: matching(patterns, existing) for name, (patterns, _) in roles.items()}
        held: dict[str, list[str]] = {}
        for name in sorted(roles):
            for holder in dict.fromkeys(roles[name][1]):
                held.setdefault(holder, []).append(name)
        roles_of = {holder: tuple(names) for holder, names in held.items()}
        together = {
            names: frozenset[str]().union(*(by_role[name] for name in names))
            for names in set(roles_of.values())
        }
        abroad = {
            name: tuple(target for target in map(target_of, patterns) if namespace_of(target))
            for name, (patterns, _) in roles.items()
        }
        by_sender = {holder: together[names] for holder, names in roles_of.items()}
        return cls(by_sender, by_role, roles_of, {name: said for name, said in abroad.items() if said})

    def granting(self, sender: str, target: str) -> str:
        """The first role that grants it; empty when none does."""
        return next((name for name in self.roles_of.get(sender, ()) if self._grants(name, target)), "")

    def _grants(self, role: str, target: str) -> bool:
        if not namespace_of(target):
            return target in self.by_role[role]
        said = self.abroad.get(role, ())
        return target in said or any(
            _fits(target, pattern.split(ANYTHING)) for pattern in said if ANYTHING in pattern
        )
