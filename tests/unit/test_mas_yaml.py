"""The manifest: every form of permission, what else it may hold, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from mas_nats.errors import ConfigurationError
from mas_nats.manifest import mas_yaml
from mas_nats.manifest.wanted import Wanted, WantedAgent
from mas_nats.policy.document import Limits, Permissions
from mas_nats.policy.governance import CircuitBreaker, Governance, Role

WHOLE = r"""
# As people wrote it for the gateway of before.
server_listen_addr: 127.0.0.1:50051
tls_ca_path: tls/root.pem
tls_server_cert_path: tls/broker.pem
tls_server_key_path: tls/broker.key

permissions:
  - {type: allow_bidirectional, agents: [intake, triage]}
  - {type: allow, sender: intake, targets: [archive, ledger]}
  - type: allow_network
    agents: [draft, review, publish]
    bidirectional: true
  - {type: allow_broadcast, sender: draft, receivers: [review, ledger]}
  - {type: allow_wildcard, agent_id: overseer}

agents:
  - agent_id: triage
    class_path: clinic.agents:Triage
    instances: 3
    capabilities: [sorting]
    metadata: {ward: north}
    tls_cert_path: tls/triage.pem
    tls_key_path: tls/triage.key
    init_kwargs: {language: en}
  - agent_id: intake
    class_path: clinic.agents:Intake
    tls_cert_path: tls/intake.pem
    tls_key_path: tls/intake.key

gateway:
  redis: {url: "redis://localhost:6379", socket_timeout: null}
  rate_limit: {per_minute: 30, per_hour: 900}
  features: {dlp: true, rbac: false, circuit_breaker: true}
  dlp:
    merge_strategy: append
    disable_defaults: [phone]
    policy_overrides: {email: redact}
    rules:
      - id: case_number
        type: case_number
        pattern: '\bCASE-[0-9]{6}\b'
        action: block
        severity: high
        description: Numbers of cases
        enabled: true
        case_insensitive: false
  audit: {file_path: audit.log, max_bytes: 1000000, backup_count: 3}
  telemetry:
    enabled: false
    service_name: clinic
    service_namespace: mas
    environment: test
    otlp_endpoint: null
    sample_ratio: 0.5
    export_metrics: true
    metrics_export_interval_ms: 30000
    headers: {}
  circuit_breaker: {failure_threshold: 5, success_threshold: 2, timeout_seconds: 60, window_seconds: 300}
"""


def load(folder: Path, text: str | bytes) -> mas_yaml.MasYaml:
    path = folder / "mas.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return mas_yaml.load(path)


def wanted(folder: Path, text: str) -> Wanted:
    return load(folder, text).wanted()


def test_a_whole_file_of_before_loads_unchanged(tmp_path: Path):
    manifest = load(tmp_path, WHOLE)
    assert [entry.instances for entry in manifest.agents] == [3, 1]
    assert manifest.agents[0].class_path == "clinic.agents:Triage"
    assert manifest.agents[0].init_kwargs == {"language": "en"}
    assert manifest.gateway is not None
    assert manifest.gateway.dlp.rules[0].pattern == r"\bCASE-[0-9]{6}\b"
    what = manifest.wanted()
    assert what.namespace == "default"
    assert what.agents == {"triage": WantedAgent(("sorting",), {"ward": "north"}), "intake": WantedAgent()}
    assert {sender: rule.allowed_targets for sender, rule in what.permissions.items()} == {
        "intake": ("triage", "archive", "ledger"),
        "triage": ("intake",),
        "draft": ("review", "publish", "ledger"),
        "review": ("draft", "publish"),
        "publish": ("draft", "review"),
        "overseer": ("*",),
    }
    assert what.limits == Limits()
    governance = what.governance
    assert (governance.rate_limit.per_minute, governance.rate_limit.per_hour) == (30, 900)
    assert governance.dlp.policy_overrides == {"email": "redact"}
    assert governance.dlp.disable_defaults == ("phone",)
    assert (governance.dlp.enabled, governance.circuit_breaker.enabled) == (True, True)


def test_governance_where_the_file_says_nothing_and_where_it_says_little(tmp_path: Path):
    assert wanted(tmp_path, "agents: []").governance == Governance()
    little = wanted(tmp_path, "gateway: {features: {dlp: false}}").governance
    assert (little.rate_limit.per_minute, little.rate_limit.per_hour) == (100, 1000)
    assert (little.dlp.enabled, little.circuit_breaker.enabled) == (False, True)
    assert wanted(tmp_path, "gateway:").governance.rate_limit.per_minute == 100


def test_circuit_breaking_is_on_unless_the_file_turns_it_off_and_none_of_it_is_without_effect(tmp_path: Path):
    for text in ("agents: []", "gateway:", "gateway: {features: {rbac: true}}"):
        assert wanted(tmp_path, text).governance.circuit_breaker == CircuitBreaker(enabled=True)
    off = wanted(tmp_path, "gateway: {features: {circuit_breaker: false}}")
    assert not off.governance.circuit_breaker.enabled
    some = wanted(tmp_path, "gateway: {circuit_breaker: {failure_threshold: 9, timeout_seconds: 1.5}}")
    assert some.governance.circuit_breaker == CircuitBreaker(failure_threshold=9, timeout_seconds=1.5)
    assert not any("circuit_breaker" in notice for what in (off, some) for notice in what.notices)
    for seconds in (".inf", ".nan", "1e9"):
        with pytest.raises(ConfigurationError, match="window_seconds"):
            wanted(tmp_path, f"gateway: {{circuit_breaker: {{window_seconds: {seconds}}}}}")


def test_the_environment_beats_the_file_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAS_GATEWAY__RATE_LIMIT__PER_MINUTE", "7")
    what = wanted(tmp_path, "gateway: {rate_limit: {per_minute: 30, per_hour: 900}}")
    assert (what.governance.rate_limit.per_minute, what.governance.rate_limit.per_hour) == (7, 900)
    assert "the environment beats the file: MAS_GATEWAY__RATE_LIMIT__PER_MINUTE" in what.notices
    alone = wanted(tmp_path, "agents: []").governance.rate_limit
    assert (alone.per_minute, alone.per_hour) == (7, 0)


def test_roles_become_policy_unless_they_are_off(tmp_path: Path):
    text = "roles: {clerk: {permissions: ['send:desk-*'], agents: [a]}}"
    roles = wanted(tmp_path, text).governance.roles
    assert roles == {"clerk": Role(permissions=("send:desk-*",), agents=("a",))}
    off = wanted(tmp_path, f"{text}\ngateway: {{features: {{rbac: false}}}}")
    assert off.governance.roles == {}
    assert any("roles grant nothing" in notice for notice in off.notices)


AGENTS = "agents: [{agent_id: alice}, {agent_id: ledger}]"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "{type: block, sender: alice, targets: [legder]}",
            "rule 1 blocks nothing of 'legder': no such agent is declared; did you mean 'ledger'?",
        ),
        (
            "{type: block, sender: mallory, targets: [ledger]}",
            "rule 1 blocks nothing of 'mallory': no such agent is declared",
        ),
    ],
)
def test_a_block_that_names_nobody_is_told(tmp_path: Path, rule: str, said: str):
    assert wanted(tmp_path, f"{AGENTS}\npermissions: [{rule}]").notices == (said,)


@pytest.mark.parametrize(
    "rule",
    [
        "{type: block, sender: alice, targets: [ledger, other/any, 'other/*']}",
        "{type: block, sender: other/any, targets: [ledger]}",
        "{type: allow, sender: alice, targets: [legder]}",
    ],
    ids=["each there is, or elsewhere", "a sender elsewhere", "an allowance leaves nothing open"],
)
def test_no_other_rule_is(tmp_path: Path, rule: str):
    assert wanted(tmp_path, f"{AGENTS}\npermissions: [{rule}]").notices == ()


def test_there_is_nothing_in_it_that_has_no_effect(tmp_path: Path):
    assert "no effect" not in "\n".join(wanted(tmp_path, WHOLE).notices)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{type: allow, sender: a, targets: [b, c]}", {"a": ("b", "c")}),
        ("{type: allow, sender: a, targets: []}", {}),
        ("{type: allow, sender: a, targets: [b, b]}", {"a": ("b",)}),
        ("{type: allow_bidirectional, agents: [a, b]}", {"a": ("b",), "b": ("a",)}),
        (
            "{type: allow_bidirectional, agents: [a, b, c]}",
            {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")},
        ),
        ("{type: allow_network, agents: [a, b, c]}", {"a": ("b", "c"), "b": ("a", "c"), "c": ("a", "b")}),
        ("{type: allow_network, agents: [a, b, c], bidirectional: false}", {"a": ("b",), "b": ("c",)}),
        ("{type: allow_network, agents: [a]}", {}),
        ("{type: allow_broadcast, sender: a, receivers: [b, c]}", {"a": ("b", "c")}),
        ("{type: allow_wildcard, agent_id: a}", {"a": ("*",)}),
    ],
)
def test_forms_of_permission(tmp_path: Path, rule: str, expected: dict[str, tuple[str, ...]]):
    found = wanted(tmp_path, f"permissions: [{rule}]").permissions
    assert found == {sender: Permissions(allowed_targets=targets) for sender, targets in expected.items()}


def test_forms_add_up_and_block_takes_away(tmp_path: Path):
    text = """
permissions:
  - {type: allow_wildcard, agent_id: a}
  - {type: allow, sender: a, targets: [b]}
  - {type: block, sender: a, targets: [c, d]}
  - {type: block, sender: a, targets: [c]}
  - {type: block, sender: e, targets: [a]}
"""
    assert wanted(tmp_path, text).permissions == {
        "a": Permissions(allowed_targets=("*", "b"), blocked_targets=("c", "d")),
        "e": Permissions(blocked_targets=("a",)),
    }


def test_our_own_settings(tmp_path: Path):
    what = wanted(
        tmp_path,
        "namespace: clinic\ninspectors: [watcher]\noperators: [olga]\n"
        "limits: {max_payload: 5000, retry_delay: 0}\nagents: [{agent_id: a, capabilities: []}]",
    )
    assert (what.namespace, what.inspectors, what.operators) == ("clinic", ("watcher",), ("olga",))
    assert (what.limits.max_payload, what.limits.retry_delay, what.limits.max_deliver) == (5000, 0, 5)


def test_state_is_mediated_unless_it_says_direct(tmp_path: Path):
    agents = wanted(tmp_path, "agents: [{agent_id: a}, {agent_id: b, state: direct}]").agents
    assert {name: agent.state for name, agent in agents.items()} == {"a": "mediated", "b": "direct"}
    with pytest.raises(ConfigurationError, match=r"agents\.0\.state.*'mediated' or 'direct'"):
        load(tmp_path, "agents: [{agent_id: a, state: quick}]")


def test_an_empty_system_allows_nothing(tmp_path: Path):
    what = wanted(tmp_path, "{}")
    assert (what.agents, what.permissions, what.notices) == ({}, {}, ())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("permissions: [{type: allow, sender: a}]", "permissions.0.allow.targets"),
        ("permissions: [{type: allow, sender: a, target: [b]}]", "permissions.0.allow.target"),
        ("permissions: [{type: permit, sender: a}]", "permissions.0"),
        ("permissions: [{sender: a, targets: [b]}]", "permissions.0"),
        ("permissions: [{type: allow, sender: 'a.b', targets: [b]}]", "permissions.0.allow.sender"),
        ("permissions: [{type: allow, sender: a, targets: ['*']}]", "permissions.0.allow.targets.0"),
        ("permissions: [{type: allow, sender: a, targets: ['>']}]", "permissions.0.allow.targets.0"),
        ("permissions: [{type: allow, sender: a, targets: b}]", "permissions.0.allow.targets"),
        ("permissions: [{type: allow_network, agents: [a], bidirectional: maybe}]", "bidirectional"),
        ("permissions: {type: allow}", "permissions"),
        ("agents: [{agent_id: Helpdesk}]", "agents.0.agent_id"),
        ("agents: [{agent_id: 'a b'}]", "agents.0.agent_id"),
        ("agents: [{agent_id: a, instances: 0}]", "agents.0.instances"),
        ("agents: [{agent_id: a, capabilty: [x]}]", "agents.0.capabilty"),
        ("agents: [{agent_id: a}, {agent_id: b}, {agent_id: a}]", "agents: .*more than once: a"),
        ("agents: [{}]", "agents.0.agent_id"),
        ("agents:", "agents"),
        ("namespace: SYS", "namespace"),
        ("namespace: a.b", "namespace"),
        ("limits: {max_payload: -1}", "limits.max_payload"),
        ("limits: {max_paylod: 1}", "limits.max_paylod"),
        ("inspectors: [a, 'B']", "inspectors.1"),
        ("permisions: []", "permisions"),
    ],
)
def test_a_mistake_is_named_by_its_field(tmp_path: Path, text: str, named: str):
    with pytest.raises(ConfigurationError, match=named) as caught:
        load(tmp_path, text)
    assert "mas.yaml" in str(caught.value)


WRONG = """\
agents:
  - agent_id: a
    capabilty: [x]
permissions:
  - {type: alow, sender: a}
  - type: allow
    sender: a
    targts: [b]
gateway:
  features:
    dpl: true
  rate_limit: {per_minute: -1}
  dlp:
    rules:
      - &one {id: one, type: one, pattern: x, action: blok}
      - {<<: *one, id: two, sevrity: high}
limits: {max_paylod: 1}
"""


@pytest.mark.parametrize(
    "words",
    [
        r"line 3, agents.0.capabilty: .*did you mean 'capabilities'\?; known are agent_id, ",
        r"line 5, permissions.0: .*'allow_network'.*did you mean 'allow'\?",
        r"line 6, permissions.1.allow.targets: Field required",
        r"line 8, permissions.1.allow.targts: .*did you mean 'targets'\?",
        r"line 11, features.dpl: .*did you mean 'dlp'\?; known are circuit_breaker, dlp, rbac",
        r"line 12, rate_limit.per_minute: .*greater than or equal to 0",
        r"line 15, dlp.rules.0.action: .*'block', 'redact' or 'alert'; did you mean 'block'\?",
        r"line 16, dlp.rules.1.sevrity: .*did you mean 'severity'\?",
        r"line 17, limits.max_paylod: .*did you mean 'max_payload'\?",
    ],
)
def test_every_mistake_is_named_by_line_and_field_with_what_was_meant(tmp_path: Path, words: str):
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, WRONG)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("agents: 7", "7"),
        ("agents: 1.5", "1.5"),
        ("agents: .nan", "nan"),
        ("agents: yes", "true"),
        ("agents:", "nothing"),
        ("agents: {}", "a mapping"),
        ("agents: {agent_id}", "a mapping"),
        ("agents: a secret", "text"),
        ("agents: 2026-01-01", "a date"),
        ("limits: {max_payload: [1]}", "a list"),
        ("limits: {max_payload: many}", "text"),
        ("limits: {max_payload: -5}", "-5"),
        ("limits: {max_payload: 9007199254740993}", "a very large number"),
        ("agents: [{agent_id: a, instances: 2.5}]", "2.5"),
        ("agents: [{agent_id: a, state: quick}]", "'quick'"),
        ("agents: [{agent_id: a, state: 7}]", "7"),
        ("permissions: [{type: alow}]", "'alow'"),
        ("permissions: [{type: [allow]}]", "a list"),
        ("permissions: [allow]", "text"),
        ("permissions: [{type: allow_network, agents: [a], bidirectional: maybe}]", "text"),
    ],
)
def test_a_mistake_says_what_was_found(tmp_path: Path, text: str, found: str):
    with pytest.raises(ConfigurationError, match=rf"\(found {found}\)"):
        load(tmp_path, text)


def test_a_mistake_does_not_repeat_what_was_written(tmp_path: Path):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, "gateway: {redis: {url: 'http://:hunter2@x'}, telemetry: {headers: [hunter2]}}")
    assert "redis.url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_key_given_twice_is_no_choice(tmp_path: Path):
    text = "agents:\n  - agent_id: a\n    state: direct\n    state: mediated\n"
    with pytest.raises(ConfigurationError, match="line 4: state is given twice"):
        load(tmp_path, text)


BOMB = "".join(
    ("a0: &a0 [x, x]\n", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)))
).encode()
"""Sixty lines that mean more values than there are atoms."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"agents: [", "not valid YAML"),
        (b"\x00\xff\xfe", "not valid YAML"),
        (b"\xff\xff\xff", "not valid YAML"),
        (b"", "mapping"),
        (b"- a\n- b", "mapping"),
        (b"just text", "mapping"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"agents: &a [*a]", "line 1: this holds itself"),
        (b"agents: []\n---\nagents: []", "holds 2 documents where one is read: the second begins on line 3"),
        (b"kind: MultiAgentSystem", "line 1: here a mas.yaml is read, which has no kind:"),
        (b"namespace: !!timestamp ''", "not valid YAML: a value does not fit the tag"),
        (b"namespace: !!bool perhaps", "not valid YAML: a value does not fit the tag"),
        (b"namespace: !!int ''", "not valid YAML: a value does not fit the tag"),
        (b"x: {y: 0x" + b"f" * 5_000 + b"}", "line 1: a number of more than 64 bits"),
        (b"agents: []\n? -9223372036854775809\n: 1", "line 2: a number of more than 64 bits"),
        (b"? 9223372036854775807\n: 1", "9223372036854775807: there is no such key"),
        (BOMB, "its anchors repeat too much"),
        (b"[" * 100_000, "not valid YAML"),
    ],
)
def test_what_is_no_manifest_at_all(tmp_path: Path, content: bytes, words: str):
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, content)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        mas_yaml.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        mas_yaml.load(tmp_path)


def test_the_nearest_manifest_is_found(tmp_path: Path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert mas_yaml.find(deep) in (None, *(folder / "mas.yaml" for folder in tmp_path.parents))
    (tmp_path / "mas.yaml").touch()
    assert mas_yaml.find(deep) == tmp_path / "mas.yaml"
    (deep / "mas.yaml").touch()
    assert mas_yaml.find(deep) == deep / "mas.yaml"
