"""The dashboard, the documentation and the code name the same metrics."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from broker_policy.audit.projector import Lag
from broker_policy.telemetry.gauges import Seen
from broker_policy.telemetry.meters import Instruments
from mas_nats.telemetry import names
from mas_nats.telemetry.agent import Watched
from mas_nats.telemetry.names import Instrument
from mas_nats.telemetry.reference import current, in_prometheus
from tests.system import REPOSITORY

DASHBOARD = REPOSITORY / "docs" / "observability" / "grafana-dashboard.json"
_WORDS = re.compile(r"\b(?:mas|messaging)_[a-z0-9_]+\b")


def exported() -> set[str]:
    """The samples that Prometheus gets when every instrument was used once."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    meter = provider.get_meter(names.SCOPE)
    has = Instruments(meter)
    for counter in (has.decisions, has.limited, *has.outcomes.values()):
        counter.add(1)
    for histogram in (has.batch, has.policy):
        histogram.record(1)
    seen = Seen(ready=True, lags={"n": Lag(1, 1.0)}, circuits={"n": Counter()})
    seen.show(meter)
    agent = Watched("a", str, _NoTracers(), provider, None)
    for histogram in (agent.duration, agent.process):
        histogram.record(1)
    for counter in (agent.sent, agent.consumed):
        counter.add(1)
    return {sample.name for metric in registry.collect() for sample in metric.samples}


class _NoTracers:
    def get_tracer(self, *_: object) -> None:
        return None


def test_every_metric_is_exported_under_the_name_that_is_documented():
    found = exported()
    for metric in (*names.AGENT_METRICS, *names.WORKER_METRICS):
        name = in_prometheus(metric)
        expected = {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        if metric.kind is not Instrument.HISTOGRAM:
            expected = {name}
        assert expected <= found, metric.name


def test_every_metric_in_the_dashboard_exists_and_every_metric_is_in_it():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    labels = {name.replace(".", "_") for name in names.ATTRIBUTES}
    used = {word for query in queries for word in _WORDS.findall(query)} - labels
    assert used <= exported()
    for metric in (*names.AGENT_METRICS, *names.WORKER_METRICS):
        assert any(word.startswith(in_prometheus(metric)) for word in used), metric.name


def test_the_control_a_metric_that_does_not_exist_is_found():
    assert "mas_nothing_total" not in exported()
    assert _WORDS.findall("sum(rate(mas_nothing_total[1m]))") == ["mas_nothing_total"]


def test_panels_do_not_lie_upon_one_another():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & taken, panel["title"]
        taken |= mine


def test_the_page_has_the_names_of_today():
    page = REPOSITORY / "docs" / "telemetry.md"
    assert page.read_text() == current(page.read_text()), (
        "bring it up to date: python -m mas_nats.telemetry.reference docs/telemetry.md"
    )


@pytest.mark.parametrize("metric", [*names.AGENT_METRICS, *names.WORKER_METRICS], ids=lambda each: each.name)
def test_metrics_have_only_attributes_of_the_list(metric: names.Metric):
    assert set(metric.attributes) <= names.ATTRIBUTES
    assert names.MESSAGE_ID not in metric.attributes, "an id for each message is no dimension"


def test_names_are_those_of_the_convention():
    """As OpenTelemetry's own package has them."""
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.messaging_attributes")
    metrics = pytest.importorskip("opentelemetry.semconv._incubating.metrics.messaging_metrics")
    for module, found in ((attributes, names.ATTRIBUTES), (metrics, {m.name for m in names.AGENT_METRICS})):
        known = {value for value in vars(module).values() if isinstance(value, str)}
        assert {name for name in found if name.startswith("messaging.")} <= known


def test_nothing_else_sets_attributes():
    """Attributes are set by their names in ``names``: no literal is spelled out elsewhere."""
    spelled = re.compile(r"""["'](?:messaging|mas)\.[a-z_.]+["']\s*:""")
    for folder in ("mas_nats/telemetry", "broker_policy/telemetry"):
        for path in Path(REPOSITORY, folder).glob("*.py"):
            assert not spelled.search(path.read_text()), path
