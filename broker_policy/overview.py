"""A namespace at a glance: what each agent has, gets and sends, from streams and from workers' counts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from broker_policy.calls.tally import AgentCount
from broker_policy.dead_letters.inboxes import consumers, counts
from broker_policy.jetstream import StoredMessage, last_of_each
from broker_policy.micro import NAME
from mas_nats.wire import subjects
from mas_nats.wire.subjects import Op

_SILENCE = 0.25
"""Seconds without a further answer after which all workers are taken to have answered."""
_FIRST = 2.0
_MOST_TOLD_BEFORE = 1_000
"""Agents of which workers told that do not say how many they leave out."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was there at one moment; ``at`` in seconds on a clock that never goes back."""

    at: float
    inboxes: dict[str, dict[str, Any]]  # what the server says of each agent's consumer
    letters: dict[str, int]
    instances: Counter[str]
    tallies: dict[str, dict[str, AgentCount]] = field(default_factory=dict)  # of each worker, by its id
    announced: list[StoredMessage] = field(default_factory=list)  # by each instance, last
    partial: frozenset[str] = frozenset()  # workers that told of the busiest agents only


@dataclass(frozen=True, slots=True)
class Row:
    """One agent. Rates are of a second, between two looks.

    ``None`` where an agent or a worker is new, or a worker with very many agents did not tell of this one.
    """

    agent: str
    instances: int
    rate_in: float | None  # deliveries, repeated ones too
    rate_out: float | None  # messages that were accepted
    in_flight: int  # delivered, and not acknowledged yet
    redelivered: int  # of those in flight
    pending: int  # not delivered yet
    dead_letters: int
    refused: int  # calls, since the workers began
    rate_refused: float | None

    @property
    def busy(self) -> float:
        """How much goes on, for an order."""
        return (self.rate_in or 0) + (self.rate_out or 0)


async def look(nc: Client) -> Look:
    """Look at the namespace that ``nc`` is connected to.

    Raises:
        JetStreamError, nats.errors.Error: a stream did not answer.

    """
    inboxes, letters, announced, (tallies, partial) = await asyncio.gather(
        consumers(nc),
        counts(nc, subjects.DLQ_STREAM, subjects.DLQ_SUBJECTS),
        last_of_each(
            nc,
            subjects.kv_stream(subjects.REGISTRY_BUCKET),
            subjects.kv_key(subjects.REGISTRY_BUCKET, ">"),
        ),
        _tallies(nc),
    )
    there = [each for each in announced if each.data not in (b"", b"{}")]
    alive = Counter(each.subject.split(".")[2] for each in there)
    return Look(time.monotonic(), inboxes, letters, alive, tallies, there, partial)


def rows(before: Look, now: Look) -> list[Row]:
    """Every agent of which anything is known, the busiest first."""
    known = {
        *now.inboxes,
        *now.letters,
        *now.instances,
        *(agent for one in now.tallies.values() for agent in one),
    }
    found = [_row(agent, before, now) for agent in known]
    return sorted(found, key=lambda row: (-row.busy, row.agent))


def _row(agent: str, before: Look, now: Look) -> Row:
    passed = max(now.at - before.at, 1e-6)
    inbox, earlier = now.inboxes.get(agent), before.inboxes.get(agent)
    delivered = None
    if inbox is not None and earlier is not None and inbox["created"] == earlier["created"]:
        delivered = (inbox["delivered"]["consumer_seq"] - earlier["delivered"]["consumer_seq"]) / passed
    sent = refused = 0
    measured = bool(now.tallies.keys() & before.tallies.keys())
    for worker, tally in now.tallies.items():
        if (then := before.tallies.get(worker)) is not None:
            if not (_told(agent, worker, before) and _told(agent, worker, now)):
                measured = False
                break
            count, was = tally.get(agent, _NOTHING), then.get(agent, _NOTHING)
            sent += max(count.sent - was.sent, 0)
            refused += max(count.refused - was.refused, 0)
    return Row(
        agent,
        instances=now.instances[agent],
        rate_in=delivered,
        rate_out=sent / passed if measured else None,
        in_flight=inbox["num_ack_pending"] if inbox else 0,
        redelivered=inbox["num_redelivered"] if inbox else 0,
        pending=inbox["num_pending"] if inbox else 0,
        dead_letters=now.letters.get(agent, 0),
        refused=sum(tally[agent].refused for tally in now.tallies.values() if agent in tally),
        rate_refused=refused / passed if measured else None,
    )


_NOTHING = AgentCount()


def _told(agent: str, worker: str, seen: Look) -> bool:
    """Whether it is known what ``worker`` counted of ``agent``: it told of it, or of all agents."""
    return agent in seen.tallies[worker] or worker not in seen.partial


async def _tallies(nc: Client) -> tuple[dict[str, dict[str, AgentCount]], frozenset[str]]:
    """What each worker counted, and which of them left agents out.

    A worker that does not answer in time is left out.
    """
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    found: dict[str, dict[str, AgentCount]] = {}
    partial: set[str] = set()
    try:
        await nc.publish(subjects.micro("STATS", NAME), b"", reply=inbox)
        while True:
            answer = await subscription.next_msg(timeout=_SILENCE if found else _FIRST)
            if (answer.headers or {}).get("Status") == "503":
                return found, frozenset(partial)
            stats = orjson.loads(answer.data)
            found[stats["id"]], untold = _of_agents(stats)
            if untold:
                partial.add(stats["id"])
    except nats.errors.TimeoutError:
        return found, frozenset(partial)
    finally:
        await subscription.unsubscribe()


def _of_agents(stats: dict[str, Any]) -> tuple[dict[str, AgentCount], bool]:
    for endpoint in stats["endpoints"]:
        if endpoint["name"] == Op.SEND:
            data = endpoint["data"]
            told = {agent: AgentCount(**count) for agent, count in data["agents"].items()}
            return told, bool(data.get("untold", len(told) >= _MOST_TOLD_BEFORE))
    return {}, False
