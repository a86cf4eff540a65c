"""Whether a worker can do its work, and how far behind the audit is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from broker_policy.audit import log
from broker_policy.audit.projector import AWAY, Lag
from broker_policy.telemetry.gauges import Seen

_PATIENCE = 2.0
"""Seconds within which a log must answer."""
_AT_ONCE = 8


class Served(Protocol):
    """One namespace, as it is served here. ``nc`` is the connection inside its account."""

    nc: Any

    async def lag(self) -> Lag:
        """What of its log is not in the chain yet."""

    def circuits(self) -> Counter[str]:
        """How many of its circuits are in which state; those that are closed are not counted."""


async def look(seen: Seen, namespaces: Mapping[str, Served]) -> str:
    """Fill in ``seen``; why this worker cannot write to a log, empty when it can.

    Redis is no reason: while it is away messages go on, and the audit waits in the log.
    """
    turns = asyncio.Semaphore(_AT_ONCE)
    lags: dict[str, Lag] = {}

    async def ask(namespace: str, served: Served) -> str:
        async with turns:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await log.last_sequence(served.nc)
            except AWAY:
                return f"the log of namespace {namespace} does not answer"
            try:
                async with asyncio.timeout(_PATIENCE):
                    lags[namespace] = await served.lag()
            except AWAY:
                pass  # not known, so not shown
            return ""

    told = await asyncio.gather(*(ask(name, served) for name, served in namespaces.items()))
    seen.lags = lags
    seen.circuits = {name: served.circuits() for name, served in namespaces.items()}
    return next(filter(None, told), "")
