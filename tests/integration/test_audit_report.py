"""A report counts what a reading of every entry counts, and nothing from outside its range."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from broker_policy.audit import entry
from broker_policy.audit.compliance import compliance
from broker_policy.audit.entry import Alarm
from broker_policy.audit.record import DecisionLine, Outcome, Record, RecordKind, Way
from broker_policy.audit.store import Store
from broker_policy.audit.tail import Tail
from broker_policy.cli.audit_report import markdown, text
from broker_policy.embedded.redis_server import RedisServer
from tests.audit_fill import START, STEP, fill
from tests.audit_log import line


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[Store]:
    redis = Redis.from_url(redis_server.url, socket_timeout=30)
    yield Store(redis, "default")
    await redis.aclose()


async def add(store: Store, *lines: DecisionLine, outcome: Outcome | None = None, revision: int = 3) -> None:
    tail = Tail(store, time.time)
    await tail.refresh()
    draft = tail.draft()
    record = Record("default", "w1i", draft.next_index, "", RecordKind.DECISIONS, 1, revision)
    for place, each in enumerate(lines):
        index = draft.add_decision(entry.decision(draft.next_index, 1, record, place, each, 0, ""))
        if outcome is not None:
            draft.set_outcome(index, outcome)
    draft.sequence += 1
    await tail.append(draft)


async def add_alarm(store: Store, at: int) -> None:
    tail = Tail(store, time.time)
    await tail.refresh()
    draft = tail.draft()
    draft.add(entry.alarm(draft.next_index, 1, at, Alarm.GAP, "w1i", 4, 6))
    draft.add(entry.loss(draft.next_index, 1, at, 1, 2, "ab", "the disk | broke"))
    await tail.append(draft)


async def test_every_number(store: Store) -> None:
    def at(second: int, way: Way = Way.NONE, **changes: object) -> DecisionLine:
        return line(way, time=START + 1000 * second, **changes)

    await add(store, at(0), revision=2)  # too early
    await add(store, at(100), at(101, rule="blocked_targets", sender="carol"))
    await add(
        store,
        at(102, decision="DLP_BLOCKED", rule="dlp:email,phone,+2"),
        at(103, Way.BATCH, decision="DLP_REDACTED", rule="dlp:email"),
        at(104, Way.BATCH, op="redrive", by="olga"),
        revision=4,
    )
    await add(store, at(105, Way.BATCH), at(106, Way.BATCH), outcome=Outcome.DEAD)
    await add(store, at(107, Way.BATCH), outcome=Outcome.EXPIRED)
    await add(store, at(108, Way.LONE), outcome=Outcome.UNKNOWN)
    await add(store, at(109, Way.LONE))
    await add_alarm(store, START + 110_000)
    await add(store, at(900), revision=5)  # too late
    report = (await compliance(store, START + 100_000, START + 200_000)).document()
    assert report["decisions"] == 10
    assert report["by_decision"] == {"ALLOWED": 6, "AUTHZ_DENIED": 2, "DLP_BLOCKED": 1, "DLP_REDACTED": 1}
    assert report["refusals"] == 3
    assert report["refusals_by_rule"] == {"default": 1, "blocked_targets": 1, "dlp:email,phone,+2": 1}
    assert report["refusals_by_sender"] == {"alice": 2, "carol": 1}
    assert report["dlp_findings"] == {
        "email": {"DLP_BLOCKED": 1, "DLP_REDACTED": 1},
        "phone": {"DLP_BLOCKED": 1},
        "(more)": {"DLP_BLOCKED": 1},
    }
    assert (report["dead_letters"], report["expired"], report["unknown"], report["unsettled"]) == (2, 1, 1, 1)
    assert [(act["by"], act["op"]) for act in report["operators_acts"]] == [("olga", "redrive")]
    assert [row["revision"] for row in report["policy_revisions"]] == [3, 4]
    assert [alarm["what"] for alarm in report["alarms"]] == ["gap"]
    assert [loss["reason"] for loss in report["accepted_losses"]] == ["the disk | broke"]


async def test_an_alarm_counts_by_when_it_was_raised(store: Store) -> None:
    """After an outage of Redis it stands beside decisions that are hours older."""
    await fill(store, 300)
    hours = 3_600_000
    await add_alarm(store, START + 5 * hours)
    await fill(store, 300, seed=2, first=400)
    late = await compliance(store, START + 4 * hours, START + 6 * hours)
    assert (late.total, late.counts["alarms"]) == (0, 1)
    early = await compliance(store, START - 1000, START + hours)
    assert (early.total, early.counts["alarms"]) == (600, 0)


async def test_a_range_within_many(store: Store) -> None:
    await fill(store, 20_000)
    since, until = START + STEP * 9_000, START + STEP * 11_000
    counted: Counter[str] = Counter()
    async for stored in store.entries():
        one = stored.entry()
        if one["k"] == "d" and since <= one["at"] <= until:
            counted[one["d"]] += 1
    report = await compliance(store, since, until)
    assert report.decisions == counted
    assert 1900 < report.total < 2100


async def test_what_others_chose_cannot_mark_up_a_report(store: Store) -> None:
    await add(store, line(rule="|x|<b>\n# evil", time=START))
    document = (await compliance(store, START - 1, START + 1)).document()
    document["verification"] = {
        "intact": False,
        "entries": 1,
        "signed_index": 0,
        "findings": [1],
        "more_findings": 0,
        "unexamined_segments": [],
        "signed_time": 0,
    }
    told = markdown(document)
    assert "\\|x\\|&lt;b> # evil" in told
    assert "\n# evil" not in told
    assert "NO, 1 findings" in text(document)
