"""What hypothesis makes up: payloads, calls, policies and manifests, of the kinds that break things."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import yaml
from hypothesis import strategies as st

from mas_nats.policy.document import AgentPolicy, Document, Limits, Permissions
from mas_nats.policy.governance import Governance
from mas_nats.wire import headers
from tests.audit_log import NAMESPACE

AGENTS = ("alice", "bob", "carol")
OPS = (
    *("send", "request", "delay", "reply", "frame", "state"),
    *("hello", "fail", "discover", "withdraw", "flow", "prompt", "token"),
)
SENSITIVE = (
    "123-45-6789",
    "4111 1111 1111 1111",
    "jane.doe@example.com",
    "(555) 123-4567",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "password=hunter2hunter2",
    "MRN: 12345678",
    "E11.9",
    "12 Long Street, Springfield, IL 62704",
)
SLOW = (
    "a@" * 2_000,
    "a." * 3_000 + "@",
    "1 " * 4_000,
    "-" * 8_000,
    "0" * 10_000,
    "\\u0000" * 1_000,
    "%41" * 3_000,
)
"""What a pattern that tries everything needs seconds for."""


def _escaped(value: Any) -> bytes:
    """JSON in which every character of a text is an escape."""
    text = orjson.dumps(value).decode()
    return "".join(
        char if char.isascii() and not char.isdigit() and char not in "@-" else _unicode(char)
        for char in text
    ).encode()


def _unicode(char: str) -> str:
    raw = char.encode("utf-16-be")
    return "".join(f"\\u{raw[at]:02x}{raw[at + 1]:02x}" for at in range(0, len(raw), 2))


_word = st.text(max_size=20)
_sensitive = st.sampled_from(SENSITIVE)
_hidden = st.one_of(
    _sensitive,
    _sensitive.map(lambda text: base64.b64encode(text.encode()).decode()),
    _sensitive.map(lambda text: "".join(f"%{byte:02X}" for byte in text.encode())),
    _sensitive.map("\n".join),
    st.integers(0, len(SLOW) - 1).map(SLOW.__getitem__),
)
_text = st.one_of(_word, _hidden, st.tuples(_word, _hidden, _word).map("".join))
_scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), _text
)
_key = st.one_of(_word, _sensitive, st.sampled_from(("password", "ssn", "cvv", "api_key", "token", "")))
values = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_key, inner, max_size=5),
    max_leaves=20,
)
payloads = st.one_of(
    st.dictionaries(_key, values, max_size=6).map(orjson.dumps),
    st.dictionaries(_key, values, max_size=3).map(_escaped),
    values.map(orjson.dumps),
    st.binary(max_size=200),
    st.integers(1, 3_000).map(lambda deep: b'{"a":' * deep + b"1" + b"}" * deep),
)
_header = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=40),
    _sensitive.map(lambda text: text.replace("\n", " ")),
    st.sampled_from(
        ("*", ">", "a.b", "other/bob", "x" * 600, "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "1")
    ),
)
_OPTIONAL = (
    headers.INSTANCE,
    headers.REPLY_TOKEN,
    headers.STREAM,
    headers.REPEATED,
    headers.TRACEPARENT,
    headers.TRACESTATE,
    headers.DEADLINE,
    headers.DUE,
    headers.DELAY,
)


@st.composite
def calls(draw: Any) -> tuple[str, str, bytes, dict[str, str]]:
    """Sender, operation, body and headers of a call: often right, often wrong in one place."""
    fields = {
        headers.MSG_ID: draw(st.one_of(st.uuids().map(str), st.sampled_from(("m1", "m2")), _header)),
        headers.TARGET: draw(st.one_of(st.sampled_from((*AGENTS, "nobody")), _header)),
        headers.TYPE: draw(st.one_of(st.sampled_from(("ask", "note")), _header)),
    }
    for name in draw(st.lists(st.sampled_from(_OPTIONAL), max_size=3, unique=True)):
        fields[name] = draw(_header)
    fields = {name: value.strip() for name, value in fields.items() if value.strip()}
    return draw(st.sampled_from((*AGENTS, "mallory"))), draw(st.sampled_from(OPS)), draw(payloads), fields


_rule = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        "type": st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True),
        "pattern": st.sampled_from(
            (r"\bACCT-[A-Z0-9]{4}\b", "(a|b)*c", "secret", r"\d{3}", ".", "^$", "(?:x?){50}")
        ),
        "action": st.sampled_from(("block", "redact", "alert")),
        "case_insensitive": st.booleans(),
    }
)
governances = st.fixed_dictionaries(
    {},
    optional={
        "rate_limit": st.fixed_dictionaries({}, optional={"per_minute": st.integers(0, 100_000)}),
        "circuit_breaker": st.fixed_dictionaries({}, optional={"failure_threshold": st.integers(1, 9)}),
        "dlp": st.fixed_dictionaries(
            {},
            optional={
                "enabled": st.booleans(),
                "merge_strategy": st.sampled_from(("append", "replace")),
                "disable_defaults": st.lists(
                    st.sampled_from(("phone", "email", "ssn")), max_size=2, unique=True
                ),
                "policy_overrides": st.dictionaries(
                    st.sampled_from(("email", "ssn", "phone")), st.sampled_from(("block", "redact", "alert"))
                ),
                "rules": st.lists(_rule, max_size=3, unique_by=lambda rule: rule["id"]),
            },
        ),
    },
).map(Governance.model_validate)
_targets = st.lists(st.sampled_from((*AGENTS, "*", "nobody")), max_size=3, unique=True).map(tuple)
_permissions = st.dictionaries(
    st.sampled_from(AGENTS),
    st.builds(Permissions, allowed_targets=_targets, blocked_targets=_targets),
)
policies = st.builds(
    lambda permissions, governance, size: Document(
        namespace=NAMESPACE,
        account="",
        agents={name: AgentPolicy(account="", capabilities=("qa",)) for name in AGENTS},
        permissions=permissions,
        governance=governance,
        limits=Limits(max_payload=size),
    ),
    _permissions,
    governances,
    st.sampled_from((10, 1_000, 1_000_000)),
)
"""Policies of the namespace that ``tests.serving`` serves."""

_names = st.sampled_from(
    (
        "agents",
        "permissions",
        "gateway",
        "limits",
        "namespace",
        "agent_id",
        "type",
        "sender",
        "targets",
        "dlp",
    )
)
_node = st.recursive(
    st.one_of(_scalar, st.sampled_from(("allow", "block", "router", "*"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names | _word, inner, max_size=4),
    max_leaves=15,
)
_casa_names = st.sampled_from(
    (
        "name",
        "type",
        "apps",
        "baseUrl",
        "host",
        "scheme",
        "enabledToolChecks",
        "llm_host",
        "httpRequestSchema",
        "promptFieldJsonPath",
        "kubernetesWorkloadName",
        "targetRef",
        "allowedEndpoints",
        "allowedSources",
        "namespace",
        "gateway",
        "limits",
    )
)
_casa_node = st.recursive(
    st.one_of(_scalar, st.sampled_from(("agent", "client", "a", "http://a:80", "{.a}", "http://[a", "*"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_casa_names | _word, inner, max_size=5),
    max_leaves=12,
)
_app = st.fixed_dictionaries(
    {"name": st.sampled_from(("a", "b", "c")), "type": st.sampled_from(("agent", "client", "mcp_server"))},
    optional={"baseUrl": st.sampled_from(("http://a", "http://b:1")) | _casa_node, "scopes": _casa_node},
)
_endpoints = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(("a", "b", "*")) | _casa_node},
        optional={"namespace": st.sampled_from(("one", "two"))},
    ),
    max_size=3,
)
_spec = st.one_of(
    st.fixed_dictionaries({"name": st.just("x"), "apps": st.lists(_app, max_size=3)}),
    st.fixed_dictionaries(
        {"targetRef": st.fixed_dictionaries({"kind": st.just("Pod"), "name": st.sampled_from(("a", "z"))})},
        optional={"allowedEndpoints": _endpoints, "allowedSources": _endpoints},
    ),
    st.dictionaries(_casa_names | _word, _casa_node, max_size=5),
    _casa_node,
)
_casa = st.fixed_dictionaries(
    {
        "apiVersion": st.sampled_from(("casa.io/v1alpha1", "casa.io/v1alpha1", "v1")) | _scalar,
        "kind": st.sampled_from(("MultiAgentSystem", "CASAPolicy", "Pod")) | _casa_node,
        "metadata": st.fixed_dictionaries({"name": st.sampled_from(("one", "two", "One"))}) | _casa_node,
        "spec": _spec,
    },
    optional={"status": _casa_node},
)
_document = st.dictionaries(_names | _word, _node, max_size=5) | _casa
manifests = st.one_of(
    st.lists(_document, max_size=4).map(lambda found: yaml.safe_dump_all(found, allow_unicode=True).encode()),
    st.lists(_casa, min_size=1, max_size=4).map(
        lambda found: yaml.safe_dump_all(found, allow_unicode=True).encode()
    ),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
)

_token = st.sampled_from(
    (
        "agents:",
        "apiVersion: casa.io/v1alpha1",
        "kind: MultiAgentSystem",
        "kind: CASAPolicy",
        "metadata: {name: a}",
        "spec:",
        "- ",
        "  ",
        "\n",
        "&x ",
        "*x",
        "<<: ",
        "? ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        "---\n",
        "...\n",
        "!!binary x",
        "!!set {a, b}",
        "!!timestamp 2020-01-01",
        "!!python/name:os.system",
        "0x" + "f" * 5_000,
        "1e999",
        ".nan",
        "~",
        "%YAML 1.3",
        "'",
        '"\\x',
        "|\n",
        "\t",
    )
)
nasty_yaml = st.lists(_token | _word, max_size=30).map("".join)
"""Pieces of YAML in any order."""
