"""Roles: what their patterns come to, what they never grant, and that it stays cheap."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mas_nats.policy.authorize import authorize
from mas_nats.policy.call import Call
from mas_nats.policy.document import AgentPolicy, Document, Permissions
from mas_nats.policy.governance import Governance, Role
from mas_nats.policy.instances import Instances
from mas_nats.policy.table import Table
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision

AGENTS = ("alice", "bob", "worker-1", "worker-2", "worker-2-b", "worker_3")


def table(
    roles: dict[str, Role],
    permissions: dict[str, Permissions] | None = None,
    agents: tuple[str, ...] = AGENTS,
) -> Table:
    return Table.compile(
        Document(
            namespace="n",
            account="A",
            agents={name: AgentPolicy(account="X", capabilities=("qa",)) for name in agents},
            permissions=permissions or {},
            governance=Governance(roles=roles),
        ),
        1,
    )


def reach(patterns: tuple[str, ...]) -> set[str]:
    rules = table({"r": Role(permissions=patterns, agents=("alice",))})
    return {target for target in (*AGENTS, "ghost") if rules.allows("alice", target)}


@pytest.mark.parametrize(
    ("patterns", "reached"),
    [
        ((), set()),
        (("send:bob",), {"bob"}),
        (("*:bob",), {"bob"}),
        (("send:worker-*",), {"worker-1", "worker-2", "worker-2-b"}),
        (("send:*-2*",), {"worker-2", "worker-2-b"}),
        (("send:w*r*2",), {"worker-2"}),
        (("send:**1",), {"worker-1"}),
        (("send:*",), set(AGENTS)),
        (("*",), set(AGENTS)),
        (("send:ghost",), set()),
        (("send:ghost", "send:bob", "send:*_3"), {"bob", "worker_3"}),
        (("send:worker",), set()),
    ],
)
def test_what_patterns_come_to(patterns, reached):
    assert reach(patterns) == reached


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "no permission pattern"),
        ("bob", "write send:<target>"),
        ("send:", "no permission pattern"),
        ("send:a.b", "no permission pattern"),
        ("send:[ab]", "no permission pattern"),
        ("send:Bob", "no permission pattern"),
        ("send:a:b", "no permission pattern"),
        ("read:bob", "no action 'read'"),
        ("sen*:bob", "no action 'sen\\*'"),
    ],
)
def test_what_could_never_grant_anything_is_refused(pattern, words):
    with pytest.raises(ValidationError, match=words):
        Role(permissions=(pattern,))


def test_a_block_beats_a_role():
    rules = table(
        {"all": Role(permissions=("*",), agents=("alice",))}, {"alice": Permissions(blocked_targets=("bob",))}
    )
    assert not rules.allows("alice", "bob")
    assert rules.allows("alice", "worker-1")
    denial = rules.denial("alice", "bob")
    assert denial.rule == "blocked_targets"
    assert "role 'all' would allow it, but a block beats every role" in denial.reason


def test_only_the_holder_of_a_role_may():
    rules = table({"r": Role(permissions=("send:bob",), agents=("alice", "gone"))})
    assert rules.allows("alice", "bob")
    assert not rules.allows("bob", "alice")
    assert not rules.allows("worker-1", "bob")


def test_the_rule_that_allows_is_named():
    rules = table(
        {
            "a": Role(permissions=("send:worker-*",), agents=("alice",)),
            "b": Role(permissions=("*",), agents=("alice",)),
        },
        {"alice": Permissions(allowed_targets=("bob",))},
    )
    assert rules.grant("alice", "bob") == "allowed_targets"
    assert rules.grant("alice", "worker-1") == "role:a"
    assert rules.grant("alice", "worker_3") == "role:b"


def test_a_refusal_names_the_roles_that_do_not_reach_so_far():
    rules = table({"clerk": Role(permissions=("send:bob",), agents=("alice",))})
    refusal = authorize(Call("alice", Op.SEND, b"{}", "", target="worker-1"), rules)
    assert refusal is not None
    assert (refusal.decision, refusal.rule) == (Decision.AUTHZ_DENIED, "deny_by_default")
    assert "(clerk)" in refusal.fix


def test_an_agent_that_is_declared_later_is_reached_from_then_on():
    roles = {"r": Role(permissions=("send:worker-*",), agents=("alice",))}
    assert not table(roles).allows("alice", "worker-9")
    assert table(roles, agents=(*AGENTS, "worker-9")).allows("alice", "worker-9")


def test_discovery_shows_what_roles_reach_and_no_more():
    rules = table(
        {"r": Role(permissions=("send:worker-*",), agents=("alice",))},
        {"alice": Permissions(blocked_targets=("worker-2",))},
    )
    instances = Instances(lambda: 0.0)
    for agent in AGENTS:
        instances.announce(agent, "1" * 20, ("qa",), {}, 1)
    found = [each["agent_id"] for each in instances.discover("alice", ["qa"], rules)]
    assert found == ["worker-1", "worker-2-b"]


_NAMES = st.sampled_from(("a", "b", "aa", "ab", "ba", "a-b", "b_a"))
_PATTERNS = st.one_of(
    st.just("*"),
    st.builds("{}:{}".format, st.sampled_from(("send", "*")), st.text("ab-_*", min_size=1, max_size=4)),
)
_ROLES = st.dictionaries(
    st.sampled_from(("r", "s", "t")),
    st.builds(Role, permissions=st.lists(_PATTERNS, max_size=3), agents=st.lists(_NAMES, max_size=3)),
)
_TARGETS = st.lists(st.one_of(_NAMES, st.just("*")), max_size=3)
_PERMISSIONS = st.dictionaries(
    _NAMES, st.builds(Permissions, allowed_targets=_TARGETS, blocked_targets=_TARGETS), max_size=3
)


def naive(document: Document, sender: str, target: str) -> bool:
    """The rules, one after the other, as the documentation says them."""
    said = document.permissions.get(sender, Permissions())
    if target in said.blocked_targets or "*" in said.blocked_targets:
        return False
    if target in said.allowed_targets or "*" in said.allowed_targets:
        return True
    for role in document.governance.roles.values():
        for pattern in role.permissions if sender in role.agents else ():
            wanted = ".*" if pattern == "*" else pattern.split(":")[1].replace("*", ".*")
            if target in document.agents and re.fullmatch(wanted, target):
                return True
    return False


@given(_ROLES, _PERMISSIONS, st.frozensets(_NAMES))
def test_the_compiled_table_says_what_the_rules_say(roles, permissions, agents):
    rules = table(roles, permissions, tuple(agents))
    names = ("a", "b", "aa", "ab", "ba", "a-b", "b_a", "ghost")
    for sender in names:
        for target in names:
            expected = naive(rules.document, sender, target)
            assert rules.allows(sender, target) is expected
            if expected:
                assert rules.grant(sender, target).removeprefix("role:")


def test_no_pattern_takes_long():
    """Backtracking would take longer than the universe is old."""
    hostile = "send:" + "*a" * 30 + "b"
    agents = tuple("a" * 57 + f"-{number:05}" for number in range(1_000))
    document = table({"r": Role(permissions=(hostile,), agents=(agents[0],))}, agents=agents).document
    begun = time.process_time()
    assert not Table.compile(document, 2).allows(agents[0], agents[1])
    assert time.process_time() - begun < 0.5


def test_ten_thousand_agents_with_a_role_for_all_compile_at_once_and_look_up_in_no_time():
    agents = tuple(f"agent-{number:05}" for number in range(10_000))
    roles = {
        "all": Role(permissions=("*",), agents=agents),
        "some": Role(permissions=("send:agent-0*", "send:*9"), agents=agents[:5_000]),
    }
    document = table(roles, agents=agents).document
    begun = time.process_time()
    rules = Table.compile(document, 2)
    assert time.process_time() - begun < 0.5
    begun = time.process_time()
    for number in range(10_000):
        assert rules.allows(agents[-1 - number], agents[number])
    assert (time.process_time() - begun) / 10_000 < 5e-6
