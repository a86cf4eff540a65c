"""The one list of each role: exports, imports, permissions and grants all come from it."""

from __future__ import annotations

import pytest

from broker_policy.tenants import accounts
from broker_policy.tenants.accounts import Feed, Service, Void
from mas_nats.policy.document import AgentPolicy, Document
from mas_nats.wire import subjects
from mas_nats.wire.identity import Identity, Role
from mas_nats.wire.state_mode import StateMode

CALLS = (
    *("hello", "bye", "send", "request", "reply", "frame", "flow", "cancel", "fail", "ack"),
    *("discover", "state", "delay", "withdraw", "prompt", "token"),
)
POLICY = Document(
    namespace="default",
    account="TENANT",
    agents={"alice": AgentPolicy(account="ALICE")},
    inspectors={"watcher": "WATCHER"},
    operators=("olga",),
)


def covers(pattern: str, subject: str) -> bool:
    """Whether ``pattern`` matches everything that ``subject`` (a pattern too) matches."""
    wide, narrow = pattern.split("."), subject.split(".")
    for position, token in enumerate(wide):
        if token == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">" or token not in ("*", narrow[position]):
            return False
    return len(wide) == len(narrow)


@pytest.mark.parametrize(
    ("uses", "exports"),
    [
        (accounts.agent("alice"), accounts.TENANT_EXPORTS),
        (accounts.agent("alice", StateMode.DIRECT), accounts.TENANT_EXPORTS),
        (accounts.inspector("watcher"), accounts.TENANT_EXPORTS),
        (accounts.WORKER, accounts.CONTROL_EXPORTS),
        (accounts.SIGNER, accounts.CONTROL_EXPORTS),
    ],
)
def test_whatever_is_imported_is_exported_with_the_same_kind_of_answer(uses, exports):
    for use in uses:
        if isinstance(use, Void):
            continue
        match = [export for export in exports if covers(export.subject, use.subject)]
        assert match, use.subject
        assert type(match[0]) is type(use)
        if isinstance(use, Service):
            assert match[0].answers is use.answers


def test_what_the_explorer_may_ask_of_control():
    """Reading, and nothing of the worker's: no heartbeat."""
    assert {use.subject for use in accounts.CONTROL_READER} == {
        "$JS.API.STREAM.MSG.GET.CHECKPOINTS",
        "$JS.API.DIRECT.GET.CHECKPOINTS",
        "$JS.API.DIRECT.GET.CHECKPOINTS.>",
        "$JS.API.STREAM.INFO.KV_policy",
        "$JS.API.DIRECT.GET.KV_policy",
    }


def test_an_agents_list():
    assert accounts.agent("alice") == (
        *(Service(f"mas.call.alice.{op}") for op in CALLS),
        Service("$JS.API.CONSUMER.MSG.NEXT.INBOX.alice", accounts.Answers.MANY),
        Service("$JS.ACK.INBOX.alice.>"),
        Service("$JS.API.DIRECT.GET.REPLIES.mas.answer.alice.>"),
        Feed("mas.reply.alice.>"),
    )


def test_direct_state_adds_the_own_key_and_nothing_else():
    own = {Service("$KV.state.alice"), Service("$JS.API.DIRECT.GET.KV_state.$KV.state.alice")}
    assert set(accounts.agent("alice", StateMode.DIRECT)) - set(accounts.agent("alice")) == own
    direct = AgentPolicy(account="ALICE", state=StateMode.DIRECT)
    policy = POLICY.model_copy(update={"agents": {"alice": direct}})
    grant = accounts.grant_for(policy, Identity("mas", "default", Role.AGENT, "alice"))
    assert grant is not None
    assert {use.subject for use in own} <= set(grant.permissions.publish)


def test_an_agents_permissions_say_its_list_again():
    grant = accounts.grant_for(POLICY, Identity("mas", "default", Role.AGENT, "alice"))
    assert grant is not None
    assert grant.account == "ALICE"
    assert grant.permissions.subscribe == ("_INBOX.>", "mas.reply.alice.>")
    assert grant.permissions.publish == (
        *(f"mas.call.alice.{op}" for op in CALLS),
        "$JS.API.CONSUMER.MSG.NEXT.INBOX.alice",
        "$JS.ACK.INBOX.alice.>",
        "$JS.API.DIRECT.GET.REPLIES.mas.answer.alice.>",
        "$SYS.REQ.USER.INFO",
    )


@pytest.mark.parametrize(
    ("role", "name", "account"),
    [
        (Role.AGENT, "alice", "ALICE"),
        (Role.INSPECTOR, "watcher", "WATCHER"),
        (Role.OPERATOR, "olga", "TENANT"),
        (Role.AGENT, "bob", None),
        (Role.AGENT, "watcher", None),
        (Role.INSPECTOR, "alice", None),
        (Role.OPERATOR, "alice", None),
        (Role.POLICY, "alice", None),
        (Role.POLICY, "olga", None),
    ],
)
def test_a_grant_is_for_a_name_in_its_role(role, name, account):
    grant = accounts.grant_for(POLICY, Identity("mas", "default", role, name))
    assert (grant.account if grant else None) == account
    assert accounts.grant_for(POLICY, Identity("mas", "other", role, name)) is None


def test_a_worker_writes_its_own_heartbeat_and_nothing_else():
    general, narrowed = accounts.permissions(accounts.WORKER), accounts.worker_permissions()
    assert "$KV.workers.*" in general.publish
    assert [subject for subject in narrowed.publish if subject.startswith("$KV.")] == [
        "$KV.workers.{{name()}}"
    ]
    assert narrowed.subscribe == general.subscribe


def test_an_inspectors_consumers_are_asked_for_under_the_names_of_the_jetstream_api():
    uses = accounts.inspector("watcher")
    asked = {use.local: use.subject for use in uses if isinstance(use, Service) and use.local}
    assert asked == {
        "$JS.API.CONSUMER.CREATE.$1": "mas.inspect.watcher.*",
        "$JS.API.CONSUMER.CREATE.$1.>": "mas.inspect.watcher.*.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.$1.$2": "mas.inspect.watcher.*.*",
    }
    granted = accounts.permissions(uses)
    assert "$JS.API.CONSUMER.CREATE.*.>" in granted.publish
    assert not [subject for subject in granted.publish if subject.startswith("mas.")]
    assert granted.subscribe == ("_INBOX.>", "mas.latency", "_INBOX.*")
    imported = accounts.imports("TENANT", uses)
    assert {"subject": "mas.view.watcher.*", "local_subject": "_INBOX.$1"}.items() <= imported[
        [each["subject"] for each in imported].index("mas.view.watcher.*")
    ].items()


def test_what_reaches_nobody_is_no_import():
    uses = (Void("nowhere"), Service("somewhere"))
    assert [each["subject"] for each in accounts.imports("TENANT", uses)] == ["somewhere"]
    assert "nowhere" in accounts.permissions(uses).publish


@pytest.mark.parametrize("uses", [accounts.inspector("watcher"), accounts.WORKER])
def test_who_imports_the_jetstream_api_imports_its_account_info_too(uses):
    """Without it every request has two answers; see ``accounts._ACCOUNT_INFO``."""
    assert Service("$JS.API.INFO") in uses


@pytest.mark.parametrize("op", subjects.AdminOp)
def test_operator_calls_are_exported_to_nobody(op):
    reached = [use.subject for use in accounts.TENANT_EXPORTS if covers(use.subject, subjects.admin(op))]
    assert reached == []
