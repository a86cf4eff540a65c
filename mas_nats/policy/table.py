"""A policy document compiled for looking things up: dicts and frozen sets, made once per revision."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cached_property

from mas_nats.policy.document import AgentPolicy, Document, Limits
from mas_nats.policy.roles import Granted
from mas_nats.wire.identity import ANY_AGENT, namespace_of

ANY = "*"
_MOST_COMPARED = 50
"""Targets among which a mistyped one is looked for: ten thousand would take 40 ms for each refusal."""

_MOST_NAMED = 5


def every(name: str) -> str:
    """``namespace/*`` for ``namespace/agent``; empty for a plain name."""
    namespace = namespace_of(name)
    return f"{namespace}/{ANY_AGENT}" if namespace else ""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a sender may not reach a target."""

    rule: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Table:
    """Who exists and who may reach whom, in one namespace under one revision."""

    document: Document
    revision: int
    _allowed: dict[str, frozenset[str]] = field(default_factory=dict)
    _blocked: dict[str, frozenset[str]] = field(default_factory=dict)
    _granted: Granted = field(default_factory=Granted.none)

    @classmethod
    def compile(cls, document: Document, revision: int) -> Table:
        """Compile ``document``."""
        return cls(
            document,
            revision,
            {sender: frozenset(rule.allowed_targets) for sender, rule in document.permissions.items()},
            {sender: frozenset(rule.blocked_targets) for sender, rule in document.permissions.items()},
            Granted.expand(
                {name: (role.permissions, role.agents) for name, role in document.governance.roles.items()},
                document.agents,
            ),
        )

    @property
    def namespace(self) -> str:
        """The namespace this table is about."""
        return self.document.namespace

    @property
    def limits(self) -> Limits:
        """The namespace's limits."""
        return self.document.limits

    @cached_property
    def limited(self) -> bool:
        """Whether anything limits how much a sender may send."""
        return self.document.governance.rate_limit.any

    def agent(self, agent_id: str) -> AgentPolicy | None:
        """What is declared about ``agent_id``; None when there is no such agent."""
        return self.document.agents.get(agent_id)

    def allows(self, sender: str, target: str) -> bool:
        """Whether ``sender`` may reach ``target``: block beats allow and role, deny by default.

        One of the two may be ``namespace/agent``; then this says what the own side has to say about it.
        """
        if "/" in sender or "/" in target:
            return not self._blocks_across(sender, target) and bool(self._grants_across(sender, target))
        blocked = self._blocked.get(sender)
        if blocked and (target in blocked or ANY in blocked):
            return False
        allowed = self._allowed.get(sender)
        if allowed and (target in allowed or ANY in allowed):
            return True
        granted = self._granted.by_sender.get(sender)
        return granted is not None and target in granted

    def grant(self, sender: str, target: str) -> str:
        """The rule by which ``allows`` says yes, as ``role:<name>`` where it is a role; for explanations."""
        if "/" in sender or "/" in target:
            return self._grants_across(sender, target)
        allowed = self._allowed.get(sender, frozenset())
        if target in allowed or ANY in allowed:
            return "allowed_targets"
        return f"role:{self._granted.granting(sender, target)}"

    def accepts(self, sender: str, agent: str) -> bool:
        """Whether ``agent`` exists here and takes messages of ``sender``, an agent of another namespace."""
        return self.agent(agent) is not None and self.allows(sender, agent)

    def lets(self, agent: str, target: str) -> bool:
        """Whether ``agent`` exists here and may send to ``target``, an agent of another namespace."""
        return self.agent(agent) is not None and self.allows(agent, target)

    def denial(self, sender: str, target: str) -> Denial:
        """Why ``allows`` said no, in words for the person who wrote the sender or the policy."""
        if self._blocks_across(sender, target):
            role = self._granted.granting(sender, target)
            beaten = f"; role {role!r} would allow it, but a block beats every role" if role else ""
            return Denial(
                "blocked_targets",
                f"{sender} is blocked from sending to {target}{beaten}",
                f"Remove {target} from the blocked targets of {sender} if this is meant to work",
            )
        allowed = self._allowed.get(sender, frozenset())
        names = sorted(allowed) if len(allowed) <= _MOST_COMPARED else []
        close = difflib.get_close_matches(target, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return Denial(
            "deny_by_default",
            f"no rule allows {sender} to send to {target}{hint}",
            f"Allow it in the manifest (permissions: type: allow, sender: {sender}, targets: [{target}])"
            f"{self._of_roles(sender)}",
        )

    def _blocks_across(self, sender: str, target: str) -> bool:
        """Whether a rule blocks it, with all names that either side may have in a rule."""
        for each in (sender, every(sender)):
            blocked = self._blocked.get(each)
            if blocked and (target in blocked or every(target) in blocked or ANY in blocked):
                return True
        return False

    def _grants_across(self, sender: str, target: str) -> str:
        """The rule that allows it; empty when none does. ``*`` alone is nobody in another namespace."""
        names = (target, every(target) or ANY)
        for each in (sender, every(sender)):
            allowed = self._allowed.get(each, ())
            if any(name in allowed for name in names):
                return "allowed_targets"
            if role := self._granted.granting(each, target):
                return f"role:{role}"
        return ""

    def _of_roles(self, sender: str) -> str:
        names = self._granted.roles_of.get(sender, ())
        return f", or by one of its roles ({', '.join(names[:_MOST_NAMED])})" if names else ""
