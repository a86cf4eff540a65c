"""A large audit in Redis, quickly: realistic entries through the real ``Draft`` and ``Store``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from broker_policy.audit import entry
from broker_policy.audit.query import Question, ask
from broker_policy.audit.record import DecisionLine, Outcome, Record, RecordKind, Way
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Tail

START = 1_800_000_000_000
"""When the first decision was made, unix milliseconds; each comes 10 ms after the one before."""
STEP = 10
APPEND = 2000
AGENTS = [f"agent-{number:02}" for number in range(40)]
_REFUSED = [("AUTHZ_DENIED", "default"), ("RATE_LIMITED", "per_minute"), ("DLP_BLOCKED", "dlp:email,phone")]


@dataclass(frozen=True, slots=True)
class Cast:
    """Who speaks, and when the first decision was made (unix milliseconds).

    ``logged``: as if the decisions had been read from the log, so that what real workers write there
    afterwards counts as older than it.
    """

    agents: Sequence[str] = tuple(AGENTS)
    start: int = START
    logged: bool = True


USUAL = Cast()


def lines(count: int, *, seed: int = 1, first: int = 0, cast: Cast = USUAL) -> Iterator[DecisionLine]:
    """Decisions as agents cause them: one in ten refused, ids as the SDK makes them."""
    chosen = random.Random(seed)
    for number in range(first, first + count):
        refused = number % 10 == 0
        decision, rule = chosen.choice(_REFUSED) if refused else ("ALLOWED", "permissions")
        yield DecisionLine(
            op=chosen.choice(["send", "send", "request"]),
            message_id=f"{chosen.getrandbits(128):032x}",
            sender=chosen.choice(cast.agents),
            target=chosen.choice(cast.agents),
            type=chosen.choice(["task", "result", "status.update"]),
            size=chosen.randint(50, 4000),
            decision=decision,
            rule=rule,
            way=Way.NONE if refused else Way.BATCH,
            time=cast.start + STEP * number + chosen.randint(-200, 200),
            commitment="" if refused else f"{chosen.getrandbits(258):043x}"[:43],
            fingerprint=f"{chosen.getrandbits(64):064x}",
        )


async def fill(
    store: Store, count: int, *, seed: int = 1, first: int = 0, outcomes: bool = True, cast: Cast = USUAL
) -> None:
    """Append ``count`` decisions, each handled (one in a thousand dead) by an entry that covers 64."""
    tail = Tail(store, time.time)
    await tail.refresh()
    made = lines(count, seed=seed, first=first, cast=cast)
    for number in itertools.count(1):
        portion = list(itertools.islice(made, APPEND))
        if not portion:
            return
        draft = tail.draft()
        record = Record(store.layout.namespace, "w0123456789abi", number, "", RecordKind.DECISIONS, START, 12)
        indexes = []
        for position, line in enumerate(portion):
            sequence = draft.sequence + position + 1
            index = draft.add_decision(
                entry.decision(draft.next_index, draft.sequence + 1, record, position, line, sequence, "")
            )
            if line.way is Way.BATCH:
                indexes.append(index)
        if outcomes:
            dead = [index for place, index in enumerate(indexes) if place % 1000 == 7]
            handled = [index for index in indexes if index not in set(dead)]
            for what, some in ((Outcome.HANDLED, handled), (Outcome.DEAD, dead)):
                for start in range(0, len(some), 64):
                    members = some[start : start + 64]
                    now = portion[-1].time + 500
                    draft.add(entry.outcome(draft.next_index, draft.sequence + 1, now, what, members))
                    for index in members:
                        draft.set_outcome(index, what)
        if cast.logged:
            draft.sequence += len(portion) + 1
        await tail.append(draft)


async def _measure(url: str, count: int) -> None:
    redis = Redis.from_url(url, socket_timeout=60)
    store = Store(redis, "default")
    started = time.monotonic()
    before = (await redis.info("memory"))["used_memory"]
    await fill(store, count)
    entries = (await store.head()).index
    used = (await redis.info("memory"))["used_memory"] - before
    took = time.monotonic() - started
    print(f"{count} decisions, {entries} entries in {took:.0f} s, {used / entries:.0f} B each")
    middle = START + STEP * count // 2
    [known] = await ask(store, Question(since=middle), limit=1, oldest_first=True)
    questions = {
        "newest 50": Question(),
        "a message id": Question(message_id=known.entry["id"]),
        "a sender": Question(sender="agent-07"),
        "a target": Question(target="agent-07"),
        "refused by a rule": Question(violation="dlp:email,phone"),
        "a decision": Question(decision="RATE_LIMITED"),
        "an outcome": Question(outcome=Outcome.DEAD),
        "a second in the middle": Question(since=middle, until=middle + 1000),
        "a second at the beginning": Question(since=START, until=START + 1000),
        "sender and target": Question(sender="agent-07", target="agent-31"),
        "sender, target, refused, an hour": Question(
            sender="agent-07",
            target="agent-31",
            decision="AUTHZ_DENIED",
            since=middle,
            until=middle + 3_600_000,
        ),
        "sender and outcome": Question(sender="agent-07", outcome=Outcome.DEAD),
        "two that never meet": Question(decision="ALLOWED", violation="default"),
        "nobody": Question(sender="nobody"),
    }
    for name, question in questions.items():
        times = []
        for _ in range(9):
            began = time.monotonic()
            found = await ask(store, question, limit=50)
            times.append(time.monotonic() - began)
        times.sort()
        print(f"| {name} | {len(found)} | {times[4] * 1000:.1f} ms | {times[-1] * 1000:.1f} ms |")
    await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill a Redis and measure questions.")
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    asyncio.run(_measure(arguments.url, arguments.count))
