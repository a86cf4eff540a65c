"""What the next record will be about, and the batch behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_policy.commit.judged import Judged
from broker_policy.commit.writer import OWN_BYTES

MAX_BATCH = 512
"""Messages in a batch; the server's limit is 1000."""
MAX_BATCH_BYTES = 3_500_000
"""Bytes of messages in a batch; the server's limit is 4 MB with headers and record."""


@dataclass(slots=True)
class Gathered:
    """What the next record will be about."""

    told: list[Judged] = field(default_factory=list)  # decided without touching the stream
    items: list[Judged] = field(default_factory=list)  # messages to store
    again: list[Judged] = field(default_factory=list)  # for the next record
    ids: set[str] = field(default_factory=set)
    size: int = 0
    weight: int = 0

    @property
    def full(self) -> bool:
        """Whether the record or the batch is large enough."""
        return (
            self.size >= MAX_BATCH_BYTES
            or self.weight >= OWN_BYTES
            or len(self.items) >= MAX_BATCH
            or len(self.told) >= MAX_BATCH
            or len(self.again) >= MAX_BATCH
        )

    def add(self, judged: Judged) -> None:
        """Add a message to store, or leave it for the next batch when this one would become too large."""
        message = judged.message
        size = len(message.body) + 1024
        if message.dedup in self.ids or (self.items and self.size + size > MAX_BATCH_BYTES):
            self.again.append(judged)
            self.size += size if message.dedup not in self.ids else 0
            return
        self.items.append(judged)
        self.ids.add(message.dedup)
        self.size += size
