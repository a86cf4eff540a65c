"""The lists of metrics and attributes in ``docs/telemetry.md``, made from ``names``.

``python -m mas_nats.telemetry.reference docs/telemetry.md`` brings the file up to date.
"""

from __future__ import annotations

from collections.abc import Iterable

from mas_nats.made_pages import filled, rewrite
from mas_nats.telemetry import names
from mas_nats.telemetry.names import Instrument, Metric

_SUFFIXES = {"s": "_seconds"}


def in_prometheus(metric: Metric) -> str:
    """The name under which Prometheus has it; of a histogram the beginning of three."""
    name = metric.name.replace(".", "_") + _SUFFIXES.get(metric.unit, "")
    return f"{name}_total" if metric.kind is Instrument.COUNTER else name


def reference() -> str:
    """The tables."""
    attributes = "\n".join(f"- `{name}`" for name in sorted(names.ATTRIBUTES))
    return "\n\n".join(
        (
            "### Metrics of agents",
            _table(names.AGENT_METRICS),
            "### Metrics of workers",
            _table(names.WORKER_METRICS),
            "### Attributes that may be exported",
            attributes,
        )
    )


def current(page: str) -> str:
    """``page`` with today's tables between its marks."""
    return filled(page, {"begin": reference})


def _table(metrics: Iterable[Metric]) -> str:
    rows = ["| metric | kind | unit | attributes | in Prometheus | |", "|---|---|---|---|---|---|"]
    for metric in metrics:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        rows.append(
            f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {attributes} "
            f"| `{in_prometheus(metric)}` | {metric.what} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    rewrite(current)
