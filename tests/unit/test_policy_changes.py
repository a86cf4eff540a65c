"""What a plan says of two policies, and who may do what while agents are drained."""

from __future__ import annotations

import pytest

from broker_policy.tenants.changes import changes
from broker_policy.tenants.drain import leaving_only
from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.governance import Dlp, DlpAction, DlpRule, Governance, RateLimits, Role
from mas_nats.policy.table import Table


def document(**said: object) -> Document:
    return Document.model_validate({"namespace": "clinic", "account": "A", **said})


def agents(*names: str, **said: object) -> dict[str, object]:
    return {name: {"account": f"account of {name}", **said} for name in names}


RULE = DlpRule(id="acct", type="acct", pattern="A+", action=DlpAction.BLOCK)


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({}, {}, []),
        ({"agents": agents("a")}, {"agents": {"a": {"account": "another"}}}, []),
        ({}, {"agents": agents("a", capabilities=["qa"])}, ["+ agent a: capabilities qa"]),
        ({"agents": agents("a")}, {}, ["- agent a"]),
        (
            {"agents": agents("a", capabilities=["x", "y"])},
            {"agents": agents("a", capabilities=["y", "z"], state="direct")},
            ["~ agent a: capabilities +z -x; state mediated → direct"],
        ),
        (
            {"agents": agents("a", capabilities=["x", "y"])},
            {"agents": agents("a", capabilities=["y", "x"])},
            ["~ agent a: capabilities x, y → y, x"],
        ),
        (
            {"agents": agents("a")},
            {"agents": agents("a", metadata={"ward": "n" * 100})},
            ['~ agent a: metadata {} → {"ward": "' + "n" * 49 + "…"],
        ),
        ({"inspectors": {"eve": "I"}}, {"operators": ["olga"]}, ["+ operator olga", "- inspector eve"]),
        (
            {"permissions": {"a": {"allowed_targets": ["b"]}}},
            {"permissions": {"a": {"allowed_targets": ["c"], "blocked_targets": ["d"]}, "b": {}}},
            ["~ permissions of a: allowed_targets +c -b; blocked_targets +d", "+ permissions of b"],
        ),
        (
            {"governance": Governance(roles={"clerk": Role(permissions=("send:a",), agents=("b",))})},
            {"governance": Governance(dlp=Dlp(rules=(RULE,), enabled=False))},
            [
                "+ dlp rule acct: id acct; type acct; pattern A+; action block",
                "~ dlp: enabled true → false",
                "- role clerk",
            ],
        ),
        (
            {},
            {"limits": {"max_payload": 5}, "governance": Governance(rate_limit=RateLimits(per_minute=7))},
            ["~ limits: max_payload 1000000 → 5", "~ rate_limit: per_minute 0 → 7"],
        ),
        (
            {"tokens": {"applications": {"a": {"type": "client"}}}},
            {"tokens": {"checks": [], "applications": {"b": {"type": "mcp_server", "tools": {"t": "f"}}}}},
            [
                '+ application b: type mcp_server; tools {"t": "f"}',
                "~ tokens: checks null → nothing",
                "- application a",
            ],
        ),
    ],
)
def test_what_differs_is_named(before: dict[str, object], after: dict[str, object], lines: list[str]) -> None:
    assert [str(each) for each in changes(document(**before), document(**after))] == lines


def test_a_new_namespace_is_named_with_all_that_is_not_as_it_is_anyway() -> None:
    found = changes(None, document(agents=agents("a"), limits={"max_payload": 5}))
    assert [str(each) for each in found] == [
        "+ namespace clinic",
        "+ agent a",
        "~ limits: max_payload 1000000 → 5",
    ]


def test_every_part_of_a_policy_is_looked_at() -> None:
    """A field that is new in policy and forgotten here would make plans lie."""
    looked_at = {"agents", "inspectors", "operators", "permissions", "limits", "governance", "tokens"}
    no_manifests_affair = {"version", "namespace", "account", "revoked"}
    assert set(Document.model_fields) == looked_at | no_manifests_affair


# -- drained ---------------------------------------------------------------------------------------------
BEFORE = Document(
    namespace="clinic",
    account="A",
    agents={name: AgentPolicy(account=name) for name in ("old", "older", "asker", "boss", "clerk")},
    permissions={
        "asker": Permissions(allowed_targets=("old", "boss")),
        "boss": Permissions(allowed_targets=("*",)),
        "old": Permissions(allowed_targets=("asker", "older", "sales/desk"), blocked_targets=("boss",)),
        "sales/desk": Permissions(allowed_targets=("old", "boss")),
        "sales/*": Permissions(allowed_targets=("old",)),
    },
    governance=Governance(
        roles={"clerks": Role(permissions=("send:ol*", "send:boss"), agents=("clerk", "old"))}
    ),
)
AFTER = BEFORE.model_copy(
    update={
        "agents": {name: BEFORE.agents[name] for name in ("asker", "boss", "clerk")},
        "limits": Limits(max_payload=5),
    }
)


def test_nobody_may_send_to_who_is_leaving_and_they_may_send_what_they_could() -> None:
    meanwhile = leaving_only(BEFORE, AFTER, ["old", "older"])
    table, was = Table.compile(meanwhile, 0), Table.compile(BEFORE, 0)
    assert table.limits.max_payload == 5
    for sender in BEFORE.agents:
        for leaving in ("old", "older"):
            assert not table.allows(sender, leaving)
        for staying in AFTER.agents:
            if sender != staying:
                assert table.allows(sender, staying) == was.allows(sender, staying), (sender, staying)
    assert not table.accepts("sales/desk", "old")
    assert not table.accepts("sales/other", "old")
    assert table.accepts("sales/desk", "boss")
    assert table.lets("old", "sales/desk")
    assert was.allows("clerk", "older")
    assert was.accepts("sales/other", "old")
    Document.model_validate_json(meanwhile.stored())
