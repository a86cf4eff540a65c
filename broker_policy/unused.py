"""What programs of ours do without while they import their modules."""

from __future__ import annotations

UNUSED = ("opentelemetry.sdk.metrics",)
"""The Redis client would import it for metrics of its own, which nobody collects: a tenth of a start."""
