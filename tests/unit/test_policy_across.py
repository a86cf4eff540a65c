"""Rules about agents of other namespaces: two sides, deny by default, block beats, no tricks with names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker_policy.pipeline.explain import Outcome, explain, message
from broker_policy.pipeline.rules import OtherSide, rules
from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml
from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.governance import Dlp, DlpAction, Governance, Role
from mas_nats.policy.table import Table
from mas_nats.wire.correlation import correlation
from mas_nats.wire.verdict import Decision
from tests.system import mas


def table(
    namespace: str = "sales",
    allow: dict[str, tuple[str, ...]] | None = None,
    block: dict[str, tuple[str, ...]] | None = None,
    roles: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] | None = None,
    *,
    acts: dict[str, DlpAction] | None = None,
    limits: Limits | None = None,
) -> Table:
    """A policy; roles as name: (permissions, agents)."""
    allow, block = allow or {}, block or {}
    document = Document(
        namespace=namespace,
        account="A",
        agents={name: AgentPolicy(account="X") for name in ("router", "desk", "desk-2")},
        permissions={
            sender: Permissions(allowed_targets=allow.get(sender, ()), blocked_targets=block.get(sender, ()))
            for sender in {*allow, *block}
        },
        governance=Governance(
            roles={name: Role(permissions=said, agents=held) for name, (said, held) in (roles or {}).items()},
            dlp=Dlp(policy_overrides=acts or {}),
        ),
        limits=limits or Limits(),
    )
    return Table.compile(Document.model_validate_json(document.stored()), 1)


@pytest.mark.parametrize(
    ("allow", "block", "may"),
    [
        ((), (), False),
        (("billing/desk",), (), True),
        (("billing/*",), (), True),
        (("billing/router",), (), False),
        (("other/desk",), (), False),
        (("other/*",), (), False),
        (("desk",), (), False),
        (("*",), (), False),
        (("billing/desk",), ("billing/desk",), False),
        (("billing/desk",), ("billing/*",), False),
        (("billing/*",), ("billing/desk",), False),
        (("billing/desk",), ("*",), False),
        (("billing/desk",), ("desk",), True),
        (("billing/desk",), ("other/*",), True),
    ],
)
def test_whom_one_s_own_agents_reach_elsewhere(allow, block, may):
    said = table(allow={"router": allow}, block={"router": block})
    assert said.allows("router", "billing/desk") is may
    assert said.lets("router", "billing/desk") is may
    assert not said.lets("nobody", "billing/desk")
    assert not said.allows("desk", "billing/desk")


@pytest.mark.parametrize(
    ("allow", "block", "may"),
    [
        ({}, {}, False),
        ({"billing/desk": ("router",)}, {}, True),
        ({"billing/*": ("router",)}, {}, True),
        ({"billing/desk": ("*",)}, {}, True),
        ({"billing/*": ("*",)}, {}, True),
        ({"desk": ("router",)}, {}, False),
        ({"other/desk": ("router",)}, {}, False),
        ({"other/*": ("*",)}, {}, False),
        ({"billing/router": ("*",)}, {}, False),
        ({"billing/desk": ("router",)}, {"billing/desk": ("router",)}, False),
        ({"billing/desk": ("router",)}, {"billing/*": ("router",)}, False),
        ({"billing/desk": ("router",)}, {"billing/*": ("*",)}, False),
        ({"billing/*": ("*",)}, {"billing/desk": ("*",)}, False),
        ({"billing/desk": ("router",)}, {"desk": ("router",)}, True),
    ],
)
def test_from_whom_one_s_own_agents_accept(allow, block, may):
    said = table(allow=allow, block=block)
    assert said.accepts("billing/desk", "router") is may
    assert not said.accepts("billing/desk", "nobody"), "who does not exist accepts nothing"
    if may:
        assert said.grant("billing/desk", "router") == "allowed_targets"
    else:
        assert said.denial("billing/desk", "router").rule in ("deny_by_default", "blocked_targets")


@pytest.mark.parametrize(
    ("permissions", "target", "may"),
    [
        (("send:billing/desk",), "billing/desk", True),
        (("send:billing/desk",), "billing/desk-2", False),
        (("send:billing/desk-*",), "billing/desk-2", True),
        (("send:billing/*",), "billing/anything", True),
        (("send:billing/*-2",), "billing/desk-2", True),
        (("send:billing/*-2",), "billing/desk", False),
        (("send:other/*",), "billing/desk", False),
        (("*:billing/*",), "billing/desk", True),
        (("send:*",), "billing/desk", False),
        (("*",), "billing/desk", False),
        (("send:*desk",), "billing/desk", False),
    ],
)
def test_roles_may_reach_elsewhere(permissions, target, may):
    said = table(roles={"clerk": (permissions, ("router",))})
    assert said.allows("router", target) is may
    assert not said.allows("desk", target)
    if may:
        assert said.grant("router", target) == "role:clerk"
    blocked = table(roles={"clerk": (permissions, ("router",))}, block={"router": ("billing/*",)})
    assert not blocked.allows("router", target)


def test_a_role_of_somebody_elsewhere_is_about_agents_here():
    said = table(roles={"guest": (("send:desk*",), ("billing/router", "other/*"))})
    assert said.accepts("billing/router", "desk-2")
    assert said.accepts("other/anybody", "desk")
    assert not said.accepts("billing/router", "router")
    assert not said.accepts("billing/desk", "desk")
    assert not said.allows("billing/router", "third/desk-1"), "a rule never joins two others"


def test_own_traffic_is_not_touched_by_rules_about_others():
    said = table(allow={"router": ("billing/desk", "billing/*")}, block={"billing/*": ("*",)})
    assert not said.allows("router", "desk")
    assert table(allow={"router": ("desk",)}, block={"router": ("billing/*",)}).allows("router", "desk")


@pytest.mark.parametrize(
    "name",
    [
        "a/b/c", "/desk", "billing/", "billing//desk", "billing/de.sk", "billing.x/desk", "bil*/desk",
        "*/desk", "*/*", "billing/>", "billing/**", "billing/d*", "BILLING/desk", "billing/ desk",
        " billing/desk", "billing/desk\n", "billing\uff0fdesk", "billing\u2215desk", "b\u0456lling/desk",
        "billing/d\u0435sk", "billing/..", "../billing/desk", "billing%2fdesk", "billing\\desk",
        "billing/desk\0",
    ],
)  # fmt: skip
def test_names_that_are_none(name):
    for permissions in ({"router": {"allowed_targets": [name]}}, {name: {"allowed_targets": ["router"]}}):
        with pytest.raises(ValidationError):
            Document.model_validate({"namespace": "sales", "account": "A", "permissions": permissions})
    with pytest.raises(ValidationError):
        Role(agents=(name,))


@pytest.mark.parametrize(
    "pattern", ["send:*/desk", "send:bil*/desk", "send:a/b/c", "send:/desk", "send:A/desk"]
)
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValidationError, match="no permission pattern"):
        Role(permissions=(f"send:{pattern}",))


@pytest.mark.parametrize(
    ("permissions", "roles", "words"),
    [
        ({"billing/desk": ["other/desk"]}, {}, "one of the two must be an agent of it"),
        ({"router": ["sales/desk"]}, {}, "write desk"),
        ({"sales/router": ["desk"]}, {}, "write router"),
        ({}, {"clerk": {"permissions": ["send:sales/desk"]}}, "write desk"),
        ({}, {"clerk": {"agents": ["sales/desk"]}}, "write desk"),
    ],
)
def test_a_rule_is_about_its_namespace(permissions, roles, words):
    said = {sender: {"allowed_targets": targets} for sender, targets in permissions.items()}
    with pytest.raises(ValidationError, match=words):
        Document.model_validate(
            {"namespace": "sales", "account": "A", "permissions": said, "governance": {"roles": roles}}
        )


def manifest(folder: Path, text: str) -> Path:
    path = folder / "mas.yaml"
    path.write_text(f"namespace: sales\nagents: [{{agent_id: router}}, {{agent_id: desk}}]\n{text}")
    return path


def test_every_form_of_rule_in_a_manifest(tmp_path):
    path = manifest(
        tmp_path,
        """
permissions:
  - {type: allow, sender: router, targets: [desk, billing/desk]}
  - {type: allow, sender: billing/*, targets: [desk]}
  - {type: allow_bidirectional, agents: [desk, support/desk]}
  - {type: allow_broadcast, sender: desk, receivers: [router, support/*]}
  - {type: block, sender: billing/spam, targets: [desk]}
  - {type: block, sender: router, targets: [billing/secret]}
roles:
  guest: {permissions: ["send:router"], agents: [support/desk]}
""",
    )
    said = Table.compile(mas_yaml.load(path).wanted().document(), 1)
    assert said.lets("router", "billing/desk")
    assert said.accepts("billing/any", "desk")
    assert not said.accepts("billing/spam", "desk")
    assert said.lets("desk", "support/desk")
    assert said.accepts("support/desk", "desk")
    assert said.lets("desk", "support/other")
    assert said.accepts("support/desk", "router")
    assert not said.lets("router", "billing/secret")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("permissions:\n  - {type: allow, sender: a/b, targets: [c/d]}\n", "one of the two must be"),
        ("permissions:\n  - {type: allow, sender: router, targets: [sales/desk]}\n", "write desk"),
        ("permissions:\n  - {type: allow, sender: router, targets: ['*/desk']}\n", "not a valid id"),
        ("permissions:\n  - {type: allow_wildcard, agent_id: a/b}\n", "not a valid id"),
        ("permissions:\n  - {type: allow_network, agents: [a/b, desk, c/d]}\n", "one of the two must be"),
        ("roles:\n  clerk: {agents: [sales/desk]}\n", "write desk"),
    ],
)
def test_a_wrong_manifest_says_where(tmp_path, text, words):
    with pytest.raises(ConfigurationError, match=words) as wrong:
        mas_yaml.load(manifest(tmp_path, text))
    assert "line " in str(wrong.value)


SALES = table(allow={"router": ("billing/desk",)})
ACCEPTING = table("billing", allow={"sales/router": ("desk",)})
SILENT = table("billing")


@pytest.mark.parametrize(
    ("own", "others", "decision", "outcome"),
    [
        (SALES, None, Decision.ALLOWED, Outcome.DEPENDS),
        (SALES, {"billing": ACCEPTING}, Decision.ALLOWED, Outcome.PASSES),
        (SALES, {"billing": SILENT}, Decision.AUTHZ_DENIED, Outcome.REFUSES),
        (SALES, {}, Decision.AUTHZ_DENIED, Outcome.REFUSES),
        (table(), {"billing": ACCEPTING}, Decision.AUTHZ_DENIED, Outcome.NOT_REACHED),
    ],
)
def test_the_dry_run_explains_both_sides(own, others, decision, outcome):
    found = explain(message("router", "billing/desk", "t", b"{}"), own, others=others)
    assert found.decision is decision
    assert {each.step: each.outcome for each in found.findings}["other_side"] is outcome


@pytest.mark.parametrize(
    ("others", "decision", "outcome"),
    [
        (None, Decision.ALLOWED, Outcome.DEPENDS),
        ({"sales": SALES}, Decision.ALLOWED, Outcome.PASSES),
        ({"sales": table()}, Decision.AUTHZ_DENIED, Outcome.REFUSES),
        ({}, Decision.AUTHZ_DENIED, Outcome.REFUSES),
    ],
)
def test_the_dry_run_explains_what_comes_from_elsewhere(others, decision, outcome):
    found = explain(message("sales/router", "desk", "t", b"{}"), ACCEPTING, others=others)
    assert found.decision is decision
    assert found.findings[0].outcome is outcome
    refused = explain(message("sales/router", "router", "t", b"{}"), ACCEPTING, others=None)
    assert refused.decision is Decision.AUTHZ_DENIED


@pytest.mark.parametrize(
    ("ours", "theirs", "decision", "rule"),
    [
        ({}, {"limits": Limits(max_payload=10)}, Decision.TOO_LARGE, "max_payload"),
        ({}, {"acts": {"email": DlpAction.BLOCK}}, Decision.DLP_BLOCKED, "dlp:email"),
        ({}, {"acts": {"email": DlpAction.REDACT}}, Decision.DLP_REDACTED, "dlp:email"),
        (
            {"acts": {"email": DlpAction.REDACT}},
            {"acts": {"email": DlpAction.BLOCK}},
            Decision.DLP_REDACTED,
            "dlp:email",
        ),
        ({"acts": {"email": DlpAction.BLOCK}}, {}, Decision.DLP_BLOCKED, "dlp:email"),
        ({}, {}, Decision.ALERT, "dlp:email"),
    ],
)
def test_the_dry_run_has_the_content_judged_by_both_sides(ours, theirs, decision, rule):
    """As the service does: what the sender's side redacts, the other does not get."""
    here = table(allow={"router": ("billing/desk",)}, **ours)
    there = table("billing", allow={"sales/router": ("desk",)}, **theirs)
    body = b'{"to": "joe.doe@example.com"}'
    found = explain(message("router", "billing/desk", "t", body), here, others={"billing": there})
    assert (found.decision, found.rule) == (decision, rule)
    found = explain(message("sales/router", "desk", "t", body), there, others={"sales": here})
    assert (found.decision, found.rule) == (decision, rule)


def test_the_rules_are_listed_with_what_the_other_side_says():
    own = table(
        allow={
            "router": ("desk", "billing/desk", "billing/x", "gone/y", "billing/*"),
            "billing/desk": ("router",),
        },
        block={"billing/*": ("desk",)},
        roles={"clerk": (("send:billing/desk",), ("desk",))},
    )
    billing = table("billing", allow={"sales/router": ("desk",), "desk": ("sales/router",)})
    said = {
        (rule.sender, rule.target, rule.allows, rule.by): rule.other_side
        for rule in rules(own, {"billing": billing})
    }
    assert said == {
        ("router", "desk", True, "permissions"): OtherSide.NONE,
        ("router", "billing/desk", True, "permissions"): OtherSide.AGREES,
        ("router", "billing/x", True, "permissions"): OtherSide.REFUSES,
        ("router", "gone/y", True, "permissions"): OtherSide.REFUSES,
        ("router", "billing/*", True, "permissions"): OtherSide.UNKNOWN,
        ("billing/desk", "router", True, "permissions"): OtherSide.AGREES,
        ("billing/*", "desk", False, "permissions"): OtherSide.UNKNOWN,
        ("desk", "billing/desk", True, "role:clerk"): OtherSide.REFUSES,
    }


def test_the_commands_show_and_check(tmp_path):
    path = manifest(
        tmp_path, "permissions:\n  - {type: allow, sender: router, targets: [billing/desk, desk]}\n"
    )
    shown: dict[str, Any] = json.loads(
        mas("policy", "show", "--across", "--manifest", str(path), "--json").stdout
    )
    assert [(each["sender"], each["target"], each["other_side"]) for each in shown["rules"]] == [
        ("router", "billing/desk", "not known")
    ]
    told = mas("policy", "check", "router", "billing/desk", "--manifest", str(path)).stdout
    assert "other_side       depends" in told
    assert (
        mas("policy", "check", "desk", "billing/desk", "--manifest", str(path), check=False).returncode == 1
    )


def test_an_id_used_here_and_there_makes_two_correlations():
    assert len({correlation("m"), correlation("m", "b"), correlation("m", "c"), correlation("b/m")}) == 4
    with pytest.raises(AssertionError):
        assert correlation("b m") != correlation("m", "b")  # why an id may hold no blank
