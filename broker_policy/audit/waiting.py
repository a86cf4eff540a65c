"""What workers decided that is not in the chain yet: the records of the log that the projector has not read.

Ordinarily a second's worth. More where Redis refuses to write or nobody projects; then a decision that cannot
be found was perhaps made all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.client import Client

from broker_policy.audit import log
from broker_policy.audit.store import Store

LONG = 5.0
"""Seconds after which one that waits is no longer ordinary."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """So many records, and how old the first of them is, in seconds."""

    records: int
    age: float

    @property
    def long(self) -> bool:
        """Whether that is more than the ordinary delay."""
        return self.records > 0 and self.age > LONG

    def __str__(self) -> str:
        return f"{self.records} records wait, the oldest for {self.age:.0f} s"


async def waiting(store: Store, tenant: Client, clock: Callable[[], float] = time.time) -> Waiting:
    """How far the chain in ``store`` is behind the log that ``tenant`` reads.

    ``clock`` returns unix seconds.

    Raises:
        JetStreamError: there is no log.
        TimeoutError, nats.errors.Error, redis.exceptions.RedisError: one of the two does not answer.

    """
    page = await log.read(tenant, (await store.head()).sequence + 1, most=1)
    age = clock() - page.messages[0].time / 1000 if page.messages else 0.0
    return Waiting(len(page.messages) + page.pending, age)
