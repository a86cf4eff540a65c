"""The rules of a policy as rows: who may reach whom, by what, and what the other namespace says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from mas_nats.policy.roles import target_of
from mas_nats.policy.table import Table
from mas_nats.wire.identity import ANY_AGENT, namespace_of


class OtherSide(StrEnum):
    """What the other namespace says of a way that leads to it or comes from it."""

    NONE = ""  # the way stays in its namespace
    AGREES = "agrees"
    REFUSES = "refuses"
    UNKNOWN = "not known"  # its policy was not looked at, or the rule is about many agents


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``by`` is ``permissions`` or ``role:<name>``; a block beats every allow."""

    sender: str
    target: str
    allows: bool
    by: str
    other_side: OtherSide = OtherSide.NONE

    @property
    def across(self) -> bool:
        """Whether it is about agents of another namespace."""
        return bool(namespace_of(self.sender) or namespace_of(self.target))


def rules(table: Table, others: Mapping[str, Table] | None = None) -> Iterator[Rule]:
    """All rules of ``table``, by sender. ``others``: all namespaces there are; None when not known."""
    found = sorted(_rules(table), key=lambda rule: (rule.across, rule.sender, rule.target, rule.allows))
    for rule in found:
        said = _other_side(rule, table.namespace, others) if rule.across else OtherSide.NONE
        yield replace(rule, other_side=said)


def _rules(table: Table) -> Iterator[Rule]:
    for sender, said in table.document.permissions.items():
        yield from (Rule(sender, target, allows=True, by="permissions") for target in said.allowed_targets)
        yield from (Rule(sender, target, allows=False, by="permissions") for target in said.blocked_targets)
    for name, role in table.document.governance.roles.items():
        for holder in role.agents:
            for pattern in role.permissions:
                yield Rule(holder, target_of(pattern), allows=True, by=f"role:{name}")


def _other_side(rule: Rule, namespace: str, others: Mapping[str, Table] | None) -> OtherSide:
    if others is None or ANY_AGENT in rule.sender + rule.target:
        return OtherSide.UNKNOWN
    where, _, agent = rule.target.rpartition("/")
    if where:
        there = others.get(where)
        agrees = there is not None and there.accepts(f"{namespace}/{rule.sender}", agent)
    else:
        where, _, agent = rule.sender.rpartition("/")
        home = others.get(where)
        agrees = home is not None and home.lets(agent, f"{namespace}/{rule.target}")
    return OtherSide.AGREES if agrees else OtherSide.REFUSES
