"""GatewaySettings: YAML below the environment below code, value by value; nothing unknown gets in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import (
    CircuitBreakerSettings,
    DlpSettings,
    FeatureSettings,
    GatewaySettings,
    RateLimitSettings,
)
from mas_nats.policy.governance import CircuitBreaker, Dlp, DlpRule, Governance, RateLimits, Role
from tests.system import REPOSITORY

PER_MINUTE = "MAS_GATEWAY__RATE_LIMIT__PER_MINUTE"


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_of_before():
    settings = GatewaySettings()
    assert (settings.rate_limit.per_minute, settings.rate_limit.per_hour) == (100, 1000)
    assert (settings.features.dlp, settings.features.circuit_breaker) == (True, True)
    assert settings.governance().dlp == Dlp()
    assert settings.governance().circuit_breaker == CircuitBreaker()


@pytest.mark.parametrize(
    ("in_file", "in_environment", "in_code", "holds"),
    [
        (None, None, None, 100),
        (1, None, None, 1),
        (1, 2, None, 2),
        (1, 2, 3, 3),
        (None, 2, 3, 3),
        (1, None, 3, 3),
    ],
)
def test_code_beats_environment_beats_file(tmp_path, monkeypatch, in_file, in_environment, in_code, holds):
    path = write(tmp_path, f"rate_limit: {{per_minute: {in_file}}}" if in_file else "")
    if in_environment:
        monkeypatch.setenv(PER_MINUTE, str(in_environment))
    code = {"rate_limit": {"per_minute": in_code}} if in_code else {}
    assert GatewaySettings.from_yaml(path, **code).rate_limit.per_minute == holds


def test_each_value_has_its_own_source(tmp_path, monkeypatch):
    path = write(tmp_path, "rate_limit: {per_minute: 1, per_hour: 1, burst: 1}\nfeatures: {dlp: false}")
    monkeypatch.setenv("MAS_GATEWAY__RATE_LIMIT__PER_HOUR", "2")
    monkeypatch.setenv("MAS_GATEWAY__DLP__DISABLE_DEFAULTS", '["phone", "email"]')
    monkeypatch.setenv("mas_gateway__dlp__policy_overrides", '{"iban": "alert"}')
    settings = GatewaySettings.from_yaml(path, rate_limit=RateLimitSettings(burst=3))
    assert settings.rate_limit == RateLimitSettings(per_minute=1, per_hour=2, burst=3)
    assert settings.features == FeatureSettings(dlp=False)
    assert settings.dlp.disable_defaults == ("phone", "email")
    assert settings.dlp.policy_overrides == {"iban": "alert"}


def test_a_section_of_code_says_only_what_was_set_in_it(monkeypatch):
    monkeypatch.setenv(PER_MINUTE, "2")
    assert GatewaySettings(rate_limit=RateLimitSettings(per_hour=9)).rate_limit.per_minute == 2


def test_a_file_may_be_a_whole_manifest(tmp_path):
    path = write(tmp_path, "agents: [{agent_id: a}]\ngateway:\n  rate_limit: {per_minute: 5}\n")
    assert GatewaySettings.from_yaml(path).rate_limit.per_minute == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rate_limt: {}", r"gateway.yaml, line 1, rate_limt: .*did you mean 'rate_limit'\?"),
        ("redis: {}\nrate_limit:\n  per_minut: 1", r"line 3, rate_limit.per_minut: .*'per_minute'\?; known"),
        (
            "dlp:\n  merge_strategy: repalce",
            r"line 2, dlp.merge_strategy: .*'append' or 'replace'; did you mean",
        ),
        ("gateway:\n  features: {dlp: perhaps}", r"line 2, features.dlp: .*boolean"),
        ("- 1", "must be a mapping"),
        ("gateway: [1]", "must be a mapping"),
        ("1: 2", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_of_a_file_are_named_by_line(tmp_path, text, words):
    with pytest.raises(ConfigurationError, match=words):
        GatewaySettings.from_yaml(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (PER_MINUTE, "many", f"the variable {PER_MINUTE}, rate_limit.per_minute: .*integer"),
        ("MAS_GATEWAY__RATE_LIMIT__PER_MINUT", "1", "rate_limit.per_minut: .*did you mean 'per_minute'"),
        ("MAS_GATEWAY__RATE_LIMT__PER_MINUTE", "1", "rate_limt: .*did you mean 'rate_limit'"),
        ("MAS_GATEWAY__DLP__RULES", "[", "MAS_GATEWAY__"),
        (
            "MAS_GATEWAY__DLP__RULES",
            '[{"id": "x", "type": "x"}]',
            "the variable MAS_GATEWAY__DLP__RULES, dlp.rules.0.pattern: Field required",
        ),
    ],
)
def test_mistakes_of_the_environment_are_named_by_variable(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        GatewaySettings()


def test_mistakes_of_code_are_named_by_field():
    with pytest.raises(ConfigurationError, match=r"\n- features.dpl: .*did you mean 'dlp'"):
        GatewaySettings(features={"dpl": True})
    with pytest.raises(ConfigurationError, match=r"rate_limit\.burst"):
        GatewaySettings(rate_limit={"burst": -1})


def test_secrets_are_not_shown():
    settings = GatewaySettings(
        redis={"url": "redis://:hunter2@x"}, telemetry={"headers": {"authorization": "hunter2"}}
    )
    assert "hunter2" not in repr(settings)


def test_everything_said_reaches_the_policy():
    settings = GatewaySettings(
        rate_limit={"per_minute": 1, "per_hour": 2, "pair_per_minute": 3, "pair_per_hour": 4, "burst": 5},
        features={"dlp": False, "circuit_breaker": False},
        dlp={
            "merge_strategy": "replace",
            "disable_defaults": ["a"],
            "policy_overrides": {"b": "alert"},
            "rules": [{"id": "c", "type": "d", "pattern": "e"}],
        },
        circuit_breaker={
            "failure_threshold": 1,
            "success_threshold": 3,
            "timeout_seconds": 4,
            "window_seconds": 5,
        },
    )
    roles = {"clerk": Role(permissions=("send:x",), agents=("a",))}
    assert settings.governance(roles) == Governance(
        rate_limit=RateLimits(per_minute=1, per_hour=2, pair_per_minute=3, pair_per_hour=4, burst=5),
        circuit_breaker=CircuitBreaker(
            enabled=False, failure_threshold=1, success_threshold=3, timeout_seconds=4, window_seconds=5
        ),
        dlp=Dlp(
            enabled=False,
            merge_strategy="replace",
            disable_defaults=("a",),
            policy_overrides={"b": "alert"},
            rules=(DlpRule(id="c", type="d", pattern="e"),),
        ),
        roles=roles,
    )


def test_the_settings_are_the_policy_s_own_part_for_part():
    """A limit that only one of the two knew would be lost on the way."""
    assert set(RateLimitSettings.model_fields) == set(RateLimits.model_fields)
    assert {"enabled", *DlpSettings.model_fields} == set(Dlp.model_fields)
    assert {"enabled", *CircuitBreakerSettings.model_fields} == set(CircuitBreaker.model_fields)


def test_the_reference_in_the_docs_says_it():  # that it is current: test_manifest_page.py
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    assert "| `per_minute` | whole number, at least 0 | `100` |" in page


def test_importing_it_brings_no_server_code():
    program = (
        "import sys; from broker_policy import GatewaySettings; GatewaySettings();"
        "print([name for name in ('redis', 'typer', 'broker_policy.tenants') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
