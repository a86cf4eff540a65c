"""Senders and a handler that write down what was accepted and what was handled."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from redis.exceptions import RedisError

from broker_policy.audit.layout import Layout
from broker_policy.audit.store import Store
from broker_policy.audit.verify import OVERDUE
from broker_policy.jetstream import JetStreamError, api, direct_get_page
from mas_nats import Agent, AgentMessage, MasError, OutcomeUnknown, Overloaded, PolicyStale, Unavailable
from mas_nats.wire import headers, subjects
from mas_nats.wire.correlation import new_message_id
from tests.system import System

UNSURE = (Unavailable, OutcomeUnknown, Overloaded, PolicyStale)


class Handling(Agent[dict[str, Any]]):
    """Handles everything and counts by message id."""

    def __init__(self, agent_id: str, **kwargs: Any) -> None:
        super().__init__(agent_id, **kwargs)
        self.handled: Counter[str] = Counter()
        self.changed = asyncio.Event()

    async def on_message(self, message: AgentMessage) -> None:
        self.handled[message.message_id] += 1
        self.changed.set()

    async def wait_handled(self, wanted: set[str], timeout: float) -> set[str]:
        """Wait until all of ``wanted`` were handled; what is missing after ``timeout`` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        while missing := wanted - self.handled.keys():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return missing
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, 1.0))
            except TimeoutError:
                continue
        return set()


async def send_all(
    sender: Agent[Any],
    target: str,
    count: int,
    concurrency: int,
    *,
    payload: Callable[[int], dict[str, object]] = lambda number: {"n": number},
    progress: Callable[[int], Awaitable[None]] | None = None,
) -> set[str]:
    """Send ``count`` messages until each is accepted, repeating under the same id; the accepted ids."""
    accepted: set[str] = set()

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            message_id = new_message_id()
            while True:
                try:
                    await sender.send(target, "work", payload(number), id=message_id)
                except UNSURE:
                    await asyncio.sleep(0.05)
                    continue
                break
            accepted.add(message_id)
            if progress is not None:
                await progress(len(accepted))

    numbers = iter(range(count))
    await asyncio.gather(*(work(numbers) for _ in range(concurrency)))
    return accepted


async def audit_of(
    system: System, namespace: str, accepted: set[str], timeout: float = OVERDUE
) -> dict[str, Any]:
    """Wait until the audit is complete; what it says, by message id: the decisions with their outcomes.

    Complete: every accepted message has a decision, and every decision an outcome that is final. That may
    take a minute where a worker was not told whether its message was stored.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        lacking, open_ones = "Redis", list[dict[str, Any]]()
        with contextlib.suppress(RedisError):
            async with system.redis() as redis:
                decisions, entries, unsettled = await _decisions(Store(redis, namespace))
            missing = accepted - decisions.keys()
            if not unsettled and not missing:
                return {"decisions": decisions, "entries": entries}
            open_ones = [{key: each[key] for key in _NAMED if key in each} for each in unsettled[:5]]
            lacking = f"an outcome of {len(unsettled)} decisions ({open_ones}), {len(missing)} decisions"
        if asyncio.get_running_loop().time() > deadline:
            where = await _whereabouts(system, namespace, {each["t"] for each in open_ones})
            raise AssertionError(f"the audit lacks {lacking}; {where}")
        await asyncio.sleep(0.5)


async def _whereabouts(system: System, namespace: str, targets: set[str]) -> dict[str, Any]:
    """What the inboxes hold, what their consumers say, and what the audit follows."""
    told: dict[str, Any] = {}
    async with system.tenant(namespace) as nc, system.redis() as redis:
        for target in targets:
            inbox = await direct_get_page(nc, subjects.INBOX_STREAM, subjects.inbox(target), 1)
            try:
                told[f"consumer {target}"] = await api(
                    nc, f"CONSUMER.INFO.{subjects.INBOX_STREAM}.{target}", {}
                )
            except JetStreamError as error:
                told[f"consumer {target}"] = repr(error)
            told[f"inbox {target}"] = [(each.sequence, each.headers.get(headers.AUDIT)) for each in inbox]
            followed = Layout(namespace).open(target)
            told[f"followed {target}"] = await redis.zrange(followed, 0, 9, withscores=True)
    return told


async def audited(
    system: System, namespace: str, op: str, count: int, timeout: float = OVERDUE
) -> dict[str, Any]:
    """The same, complete with ``count`` decisions of the kind ``op``."""
    async with asyncio.timeout(timeout):
        while True:
            audit = await audit_of(system, namespace, set(), timeout)
            lines = [each for decisions in audit["decisions"].values() for each in decisions]
            if sum(each["o"] == op for each in lines) >= count:
                return audit
            await asyncio.sleep(0.1)


_NAMED = ("i", "s", "q", "o", "f", "t", "wy", "at", "outcome")


async def _decisions(
    store: Store,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]], list[dict[str, Any]]]:
    entries = [stored.entry() async for stored in store.entries()]
    lines = [entry for entry in entries if entry["k"] == "d"]
    outcomes = await store.outcomes_at([entry["i"] for entry in lines])
    decisions: dict[str, list[dict[str, Any]]] = {}
    for entry, outcome in zip(lines, outcomes, strict=True):
        decisions.setdefault(entry["id"], []).append({**entry, "outcome": outcome})
    told = [each for found in decisions.values() for each in found]
    return decisions, entries, [each for each in told if each["outcome"] in (" ", "c", "v")]


__all__ = ["UNSURE", "Handling", "MasError", "audit_of", "audited", "send_all"]
