"""What turns telemetry on, for workers and for agents, and what does not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import NoOpTracerProvider
from pydantic import ValidationError

from broker_policy.embedded import telemetry_file
from broker_policy.embedded.layout import Layout
from broker_policy.embedded.plan import Plan
from broker_policy.embedded.server_part import planned
from mas_nats.errors import ConfigurationError
from mas_nats.manifest.gateway import GatewaySettings
from mas_nats.telemetry.choice import choose
from mas_nats.telemetry.exporting import providers
from mas_nats.telemetry.settings import PREFIX, TelemetrySettings, from_environment


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
        "OTEL_TRACES_SAMPLER",
        "OTEL_SDK_DISABLED",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        f"{PREFIX}ENABLED",
    ):
        monkeypatch.delenv(name, raising=False)


def test_it_is_off_by_default():
    assert not TelemetrySettings().enabled
    assert TelemetrySettings().metrics_port == 0
    assert choose("a", str) is None


def test_the_standard_variables_alone_turn_nothing_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert choose("a", str) is None


def test_the_environment_turns_it_on_and_the_standard_switch_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"{PREFIX}ENABLED", "false")
    assert choose("a", str) is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "TRUE")
    monkeypatch.setenv(f"{PREFIX}ENABLED", "true")
    assert choose("a", str) is None


def test_an_agents_environment_has_the_names_of_the_gateways():
    said = {f"{PREFIX}ENABLED": "true", f"{PREFIX}SAMPLE_RATIO": "0.25", f"{PREFIX}HEADERS": '{"a": "b"}'}
    settings = from_environment({**said, "PATH": "/bin", "MAS_GATEWAY__DLP__RULES": "[]"})
    assert (settings.enabled, settings.sample_ratio, settings.headers) == (True, 0.25, {"a": "b"})


@pytest.mark.parametrize(
    ("name", "value"), [("SAMPLE_RATIO", "hunter2"), ("HEADERS", "{hunter2"), ("NO_SUCH", "hunter2")]
)
def test_what_is_wrong_is_named_and_not_repeated(name: str, value: str):
    with pytest.raises(ConfigurationError, match=name) as raised:
        from_environment({f"{PREFIX}{name}": value})
    assert "hunter2" not in str(raised.value)


def test_the_manifest_reaches_the_workers(tmp_path: Path):
    path = tmp_path / "mas.yaml"
    path.write_text(
        "agents: [{agent_id: a}]\n"
        "gateway: {telemetry: {enabled: true, headers: {authorization: hunter2}, metrics_port: 9464}}\n"
    )
    plan = planned(Plan(manifest=path))
    assert plan.telemetry.enabled
    assert "hunter2" not in repr(plan)
    layout = Layout(tmp_path / ".mas")
    layout.create()
    telemetry_file.write(layout, plan.telemetry)
    assert stat.S_IMODE(layout.telemetry.stat().st_mode) == 0o600
    assert telemetry_file.read(layout) == plan.telemetry
    assert telemetry_file.read(layout).model_fields_set == {"enabled", "headers", "metrics_port"}
    assert [telemetry_file.port_of(plan.telemetry, number) for number in (1, 2, 3)] == [9464, 9465, 9466]
    telemetry_file.write(layout, TelemetrySettings())
    assert not layout.telemetry.exists(), "turned off it stays off"
    assert telemetry_file.port_of(TelemetrySettings(), 2) == 0


def test_a_damaged_file_is_named(tmp_path: Path):
    layout = Layout(tmp_path / ".mas")
    layout.create()
    layout.telemetry.write_text('{"headers": "hunter2"}')
    with pytest.raises(ConfigurationError, match=r"telemetry\.json is damaged") as raised:
        telemetry_file.read(layout)
    assert "hunter2" not in str(raised.value)


def test_metrics_for_other_machines_need_a_token():
    with pytest.raises(ValidationError, match="metrics_token"):
        TelemetrySettings(metrics_host="0.0.0.0")
    with pytest.raises(ValidationError, match="IP address"):
        TelemetrySettings(metrics_host="localhost")
    assert TelemetrySettings(metrics_host="0.0.0.0", metrics_token="t").metrics_host == "0.0.0.0"
    assert TelemetrySettings(metrics_host="::1").metrics_token == ""
    with pytest.raises(ConfigurationError, match="metrics_token"):
        GatewaySettings(telemetry={"metrics_host": "0.0.0.0"})


async def test_a_setting_beats_its_variable_and_a_variable_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by-variable")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    for said, name, kept in (
        ({}, "by-variable", False),
        ({"service_name": "by-setting", "sample_ratio": 1.0}, "by-setting", True),
    ):
        made = providers(TelemetrySettings(enabled=True, export_metrics=False, **said))
        assert isinstance(made.tracers, TracerProvider)
        assert made.tracers.resource.attributes["service.name"] == name
        assert made.tracers.get_tracer("t").start_span("s").is_recording() is kept
        await made.stop()


async def test_a_ratio_is_about_traces_that_begin_here():
    made = providers(TelemetrySettings(enabled=True, export_metrics=False, sample_ratio=0.0))
    assert isinstance(made.tracers, TracerProvider)
    assert isinstance(made.tracers.sampler, ParentBased)
    await made.stop()


def test_what_is_not_enabled_has_no_provider():
    assert isinstance(providers(TelemetrySettings()).tracers, NoOpTracerProvider)
