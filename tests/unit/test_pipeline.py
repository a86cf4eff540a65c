"""Shape and authorize, step by step; nothing that is no id reaches a subject, whatever a call claims."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_policy.audit.record import Record, RecordKind, Way
from broker_policy.commit.lines import line_of, weight
from broker_policy.pipeline import Call, judge
from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.shape import CLOCK_TOLERANCE_MS, MAX_DEADLINE_MS
from mas_nats.policy.table import Table
from mas_nats.wire import headers, subjects
from mas_nats.wire.subjects import Op
from mas_nats.wire.verdict import Decision, Verdict

NOW = 1_700_000_000_000
TABLE = Table.compile(
    Document(
        namespace="here",
        account="A",
        agents={name: AgentPolicy(account="X") for name in ("alice", "bob", "carol")},
        permissions={
            "alice": Permissions(allowed_targets=("*",), blocked_targets=("carol",)),
            "bob": Permissions(allowed_targets=("alice", "nobody")),
        },
        limits=Limits(max_payload=100),
    ),
    7,
)
PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
GOOD = {"message_id": "m1", "target": "bob", "type": "work", "instance": "0" * 20}


def call(op: str = Op.SEND, sender: str = "alice", body: bytes = b"{}", **changes: object) -> Call:
    made = Call(sender, op, body, "_INBOX.x", received=NOW, **GOOD)
    made.deadline = NOW + 1000 if op == Op.REQUEST else 0
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "decision", "rule"),
    [
        # in the order of the steps: the first refusal wins
        ({"malformed": "a header is bad", "message_id": ""}, Decision.INVALID, "header"),
        ({"message_id": "", "type": ""}, Decision.INVALID, "message_id"),
        ({"message_id": "x" * 129}, Decision.INVALID, "message_id"),
        ({"message_id": "a b"}, Decision.INVALID, "message_id"),
        ({"message_id": "é"}, Decision.INVALID, "message_id"),
        ({"message_id": "a\n"}, Decision.INVALID, "message_id"),
        ({"type": "", "target": "*"}, Decision.INVALID, "type"),
        ({"type": "a\x00"}, Decision.INVALID, "type"),
        ({"target": "", "body": b"no"}, Decision.INVALID, "target"),
        ({"target": "*"}, Decision.INVALID, "target"),
        ({"target": ">"}, Decision.INVALID, "target"),
        ({"target": "a.b"}, Decision.INVALID, "target"),
        ({"target": "bob "}, Decision.INVALID, "target"),
        ({"target": "bob\n"}, Decision.INVALID, "target"),
        ({"target": "Bob"}, Decision.INVALID, "target"),
        ({"target": "/bob"}, Decision.INVALID, "target"),
        ({"target": "here/"}, Decision.INVALID, "target"),
        ({"target": "here/bob/x"}, Decision.INVALID, "target"),
        ({"target": "x" * 64}, Decision.INVALID, "target"),
        ({"target": "there/bob"}, Decision.AUTHZ_DENIED, "cross_namespace"),
        ({"body": b"x" * 101, "target": "carol"}, Decision.TOO_LARGE, "max_payload"),
        ({"body": b""}, Decision.INVALID, "json"),
        ({"body": b"[]"}, Decision.INVALID, "json"),
        ({"body": b'{"a":NaN}'}, Decision.INVALID, "json"),
        ({"body": b"\xff"}, Decision.INVALID, "json"),
        ({"target": "carol"}, Decision.AUTHZ_DENIED, "blocked_targets"),
        ({"target": "dave"}, Decision.UNKNOWN_TARGET, "unknown_target"),
        ({"sender": "bob", "target": "carol"}, Decision.AUTHZ_DENIED, "deny_by_default"),
        ({"sender": "bob", "target": "nobody"}, Decision.UNKNOWN_TARGET, "unknown_target"),
        ({"sender": "carol", "target": "nobody"}, Decision.AUTHZ_DENIED, "deny_by_default"),
    ],
    ids=repr,
)
def test_refused(changes, decision, rule):
    refusal = judge(call(**changes), TABLE)
    assert refusal is not None
    assert (refusal.decision, refusal.rule) == (decision, rule)
    assert refusal.step in ("shape", "authorize")
    assert refusal.reason
    assert refusal.fix


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"instance": ""}, "instance"),
        ({"instance": "g" * 20}, "instance"),
        ({"instance": "0" * 19}, "instance"),
        ({"instance": "*"}, "instance"),
        ({"instance": "0" * 20 + "\n"}, "instance"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": NOW - CLOCK_TOLERANCE_MS - 1}, "deadline"),
        ({"deadline": NOW + MAX_DEADLINE_MS + CLOCK_TOLERANCE_MS + 1}, "deadline"),
    ],
    ids=repr,
)
def test_a_request_that_nobody_could_answer(changes, rule):
    refusal = judge(call(Op.REQUEST, **changes), TABLE)
    assert refusal is not None
    assert refusal.rule == rule
    assert judge(call(Op.SEND, **changes), TABLE) is None, "it is no matter to a send"


@pytest.mark.parametrize("difference", [-CLOCK_TOLERANCE_MS, 0, MAX_DEADLINE_MS + CLOCK_TOLERANCE_MS])
def test_clocks_may_differ(difference):
    assert judge(call(Op.REQUEST, deadline=NOW + difference), TABLE) is None


def test_allowed():
    assert judge(call(), TABLE) is None
    own = call(target="here/bob")
    assert judge(own, TABLE) is None
    assert own.target == "bob"
    assert judge(call(Op.REPLY, sender="carol", target="alice"), TABLE) is None, "the capability is the rule"
    assert judge(call(body=b"{" + b" " * 98 + b"}"), TABLE) is None


@pytest.mark.parametrize(
    ("parent", "state", "kept"),
    [
        (
            PARENT,
            "k=v",
            (PARENT, "k=v"),
        ),
        (
            PARENT,
            "k=\x01",
            (PARENT, ""),
        ),
        ("00-short", "k=v", ("", "")),
        ("", "k=v", ("", "k=v")),
    ],
)
def test_a_trace_that_does_not_parse_is_ignored(parent, state, kept):
    made = call(traceparent=parent, tracestate=state)
    assert judge(made, TABLE) is None
    assert (made.traceparent, made.tracestate) == kept


# -- whatever a call claims --------------------------------------------------------------------------------
@dataclass
class Message:
    """What comes from the connection."""

    subject: str
    data: bytes
    headers: dict[str, str] | None
    reply: str = "_INBOX.x"


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.text(".*>$ \t/\\\"'\x00\x7f-_abz09", max_size=80),
    st.sampled_from(["bob", "here/bob", "bob.", "*", ">", "bob\n", "$JS.API.>", "x" * 5000, "", "0" * 20]),
)
READ = sorted(headers.READ_FROM_AGENTS)
SUBJECT = re.compile(r"mas\.inbox\.[a-z0-9][a-z0-9_-]{0,62}")


@given(
    st.sampled_from(["send", "request", "reply"]),
    st.dictionaries(st.sampled_from(READ), HOSTILE),
    st.one_of(st.binary(max_size=120), st.just(b"{}")),
)
def test_nothing_that_is_no_id_reaches_a_subject_or_breaks_a_record(op, fields, body):
    made = Call.read(Message(f"mas.call.alice.{op}", body, fields))
    refusal = judge(made, TABLE)
    if refusal is None and op != "reply":
        assert SUBJECT.fullmatch(subjects.inbox(made.target))
        assert made.target in ("bob", "alice")
        assert made.message_id.isprintable()
        assert len(made.message_id) <= 128
    if refusal is None and op == "request":
        assert re.fullmatch("[0-9a-f]{20}", made.instance)
    assert len(made.message_id) <= headers.MAX_VALUE_BYTES
    if refusal is not None:
        assert Verdict.decode(refusal.verdict(made.message_id).encode()).decision == refusal.decision
    line = line_of(made, Decision.INVALID, "rule", Way.NONE, "", "f" * 64)
    record = Record("here", "w1i", 2, "", RecordKind.DECISIONS, 1, 1, (line,))
    assert Record.decode(record.encode()) == record
    empty = Record("here", "w1i", 2, "", RecordKind.DECISIONS, 1, 1)
    assert len(record.encode()) - len(empty.encode()) < weight(line) + len('"decisions":[],')


@given(st.text(max_size=40))
def test_a_deadline_is_a_number_or_malformed(text: str):
    made = Call.read(Message("mas.call.alice.request", b"{}", {headers.DEADLINE: text}))
    assert made.malformed or made.deadline == int(text or 0)
    assert made.deadline < 10**15


def test_a_call_without_headers():
    made = Call.read(Message("mas.call.alice.hello", b"{}", None))
    assert (made.sender, made.op, made.message_id, made.malformed) == ("alice", "hello", "", "")
