"""``docs/wire.md`` is what the code says, and leaves out nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker_policy.wire_reference import current
from mas_nats.wire import headers, subjects
from mas_nats.wire.verdict import Decision

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
OTHERS = {"Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit", "Nats-TTL", "Nats-Pending-Messages"}
OTHERS |= {
    "Nats-Num-Pending",
    "Nats-Expected-Last-Msg-Id",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Last-Sequence",
    "Status",
}
"""JetStream's own, which mean here what they mean everywhere."""


def test_it_is_up_to_date():
    """Run ``python -m broker_policy.wire_reference docs/wire.md`` when this fails."""
    page = PAGE.read_text()
    assert page == current(page)


@pytest.mark.parametrize("kind", ["headers", "decisions", "subjects"])
def test_nothing_is_left_out(kind: str):
    page = PAGE.read_text()
    if kind == "headers":
        names = {value for name, value in vars(headers).items() if name.isupper() and isinstance(value, str)}
        wanted = {name.removeprefix("Mas-Dead") if "Dead-" in name else name for name in names - OTHERS}
    elif kind == "decisions":
        wanted = {f"`{decision}`" for decision in Decision}
    else:
        # The part of a subject before what differs from one to the next.
        found = re.findall(r'"(mas\.[a-z]+)', Path(subjects.__file__).read_text())
        wanted = {f"`{name}" for name in found}
    assert {name for name in wanted if name not in page} == set()
