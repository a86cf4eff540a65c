"""Parts of ``docs/wire.md`` made from the code: ``python -m broker_policy.wire_reference docs/wire.md``."""

from __future__ import annotations

from collections.abc import Iterable

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from broker_policy.tenants.streams import control_streams, tenant_streams
from mas_nats.made_pages import filled, rewrite
from mas_nats.policy.document import Limits
from mas_nats.wire import headers
from mas_nats.wire.subjects import AdminOp, Op

_MEBIBYTE = 1 << 20


def current(page: str) -> str:
    """``page`` as the code has it today."""
    return filled(
        page,
        {
            "operations": lambda: _words(Op),
            "operators-operations": lambda: _words(AdminOp),
            "headers.read": lambda: _words(sorted(headers.READ_FROM_AGENTS)),
            "streams": lambda: _streams(tenant_streams(Limits())),
            "control.streams": lambda: _streams(control_streams()),
        },
    )


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _streams(streams: Iterable[StreamConfig]) -> str:
    lines = ["| stream | subjects | stored | kept | when it is full |", "|---|---|---|---|---|"]
    for each in streams:
        subjects = _words(each.subjects or ())
        stored = "in memory" if each.storage == StorageType.MEMORY else "in files"
        full = "the oldest go" if each.discard == DiscardPolicy.OLD else "refused"
        lines.append(f"| `{each.name}` | {subjects} | {stored} | {_kept(each)} | {full} |")
    return "\n".join(lines)


def _kept(stream: StreamConfig) -> str:
    """Until when, and how much of it."""
    limits = ["until acknowledged"] if stream.retention == RetentionPolicy.WORK_QUEUE else []
    if stream.max_age:
        limits.append(f"{stream.max_age:g} s")
    if (of_each := stream.max_msgs_per_subject or -1) > 0:
        limits.append(f"{of_each:,} of a subject")
    if (messages := stream.max_msgs or -1) > 0:
        limits.append(f"{messages:,} messages")
    if (size := stream.max_bytes or -1) > 0:
        limits.append(f"{size / _MEBIBYTE:g} MiB")
    return ", ".join(limits) or "without limit"


if __name__ == "__main__":
    rewrite(current)
