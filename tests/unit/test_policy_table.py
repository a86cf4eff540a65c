"""Who may reach whom: block beats allow, nothing is allowed by default, and a denial says what to do."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.table import Table


def table(**rules: tuple[tuple[str, ...], tuple[str, ...]]) -> Table:
    """Rules as sender=(allowed, blocked)."""
    permissions = {
        sender: Permissions(allowed_targets=allowed, blocked_targets=blocked)
        for sender, (allowed, blocked) in rules.items()
    }
    agents = {name: AgentPolicy(account="X") for name in ("alice", "bob", "carol")}
    return Table.compile(Document(namespace="n", account="A", agents=agents, permissions=permissions), 3)


@pytest.mark.parametrize(
    ("allowed", "blocked", "may"),
    [
        ((), (), False),
        (("bob",), (), True),
        (("carol",), (), False),
        (("*",), (), True),
        (("*",), ("bob",), False),
        (("bob",), ("bob",), False),
        (("bob",), ("*",), False),
        (("*",), ("*",), False),
        (("*",), ("carol",), True),
        ((), ("bob",), False),
        (("bob", "carol"), ("carol",), True),
    ],
)
def test_block_beats_allow_beats_nothing(allowed, blocked, may):
    rules = table(alice=(allowed, blocked))
    assert rules.allows("alice", "bob") is may
    assert rules.allows("bob", "alice") is False
    assert rules.allows("nobody", "bob") is False


@pytest.mark.parametrize(
    ("allowed", "blocked", "rule", "words"),
    [
        ((), (), "deny_by_default", "no rule allows alice to send to bob"),
        (("bobb",), (), "deny_by_default", "did you mean 'bobb'"),
        (("*",), ("bob",), "blocked_targets", "alice is blocked from sending to bob"),
        (("bob",), ("*",), "blocked_targets", "blocked"),
    ],
)
def test_a_denial_names_its_rule_and_what_to_do(allowed, blocked, rule, words):
    denial = table(alice=(allowed, blocked)).denial("alice", "bob")
    assert denial.rule == rule
    assert words in denial.reason
    assert "alice" in denial.fix


def test_a_denial_is_cheap_however_many_targets_are_allowed():
    """Anybody may bring one about as often as they like."""
    many = tuple(f"agent-with-some-name-{number:05}" for number in range(10_000))
    rules = table(alice=(many, ()))
    begun = time.process_time()
    for number in range(200):
        assert "did you mean" not in rules.denial("alice", f"agent-with-some-name-{number}").reason
    assert time.process_time() - begun < 0.2


def test_a_table_knows_its_agents_and_revision():
    rules = table()
    assert rules.agent("alice") is not None
    assert rules.agent("dave") is None
    assert (rules.namespace, rules.revision, rules.limits) == ("n", 3, Limits())


@pytest.mark.parametrize(
    "content",
    [
        {"namespace": "N"},
        {"namespace": "a.b"},
        {"namespace": ""},
        {"agents": {"a.b": {"account": "X"}}},
        {"agents": {"*": {"account": "X"}}},
        {"permissions": {"alice": {"allowed_targets": ["a>"]}}},
        {"permissions": {"al ice": {}}},
        {"operators": ["UPPER"]},
        {"limits": {"max_payload": 0}},
        {"limits": {"ack_wait": -1}},
        {"limits": {"max_state": 2_147_479_552}},  # with its headers more than the server can count
        {"version": 2},
        {"unknown": 1},
    ],
)
def test_no_document_holds_what_is_no_id_or_no_limit(content):
    """Ids from it become part of subjects."""
    with pytest.raises(ValidationError):
        Document.model_validate({"namespace": "n", "account": "A"} | content)
